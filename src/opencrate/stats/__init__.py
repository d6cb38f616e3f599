"""Intervals of means, trends, and how both are put in words."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .intervals import (
        Interval as Interval,
        bootstrap_mean as bootstrap_mean,
        bootstrap_statistic as bootstrap_statistic,
        paired_difference as paired_difference,
        seed_interval as seed_interval,
    )
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
