"""Many runs or known truths: sweeps over seeds, and experiments."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .sweep import load_sweep as load_sweep, run_sweep as run_sweep
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
