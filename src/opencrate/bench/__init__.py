"""How fast are the models, on the machine at hand? Forms of one model, and other models, timed in turns in one run."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .curves import curve as curve
    from .profile import recipe as recipe
    from .result import BenchResult as BenchResult
    from .revisions import compare as compare, compare_recipe as compare_recipe
    from .run import decode as decode, image as image, mae as mae, text as text
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
