"""The named sizes of all CRATE models."""

from .configuration_crate import CrateConfig
from .configuration_crate_mae import CrateMAEConfig
from .configuration_crate_text import CrateTextConfig


def list_sizes() -> dict[str, list[str]]:
    """By model type, what ``from_size`` of its configuration takes.

    Examples:
        >>> list_sizes()["crate_mae"]
        ['tiny', 'small', 'base', 'large', 'digits', 'laptop']
    """
    return {cls.model_type: list(cls.SIZES) for cls in (CrateConfig, CrateMAEConfig, CrateTextConfig)}
