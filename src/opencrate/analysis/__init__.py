"""The white box: record a model's states once, and measure them."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .autoencoder import measure_autoencoder as measure_autoencoder
    from .doctor.diagnose import diagnose as diagnose
    from .doctor.inputs import diagnose_saved as diagnose_saved
    from .features.find import find_features as find_features
    from .features.patches import find_patch_features as find_patch_features
    from .features.steer import steer as steer, steer_each as steer_each
    from .layers.analyze import analyze as analyze
    from .layers.result import layer_measures as layer_measures
    from .masks.segment import segment as segment
    from .masks.views import TokenViews as TokenViews, token_views as token_views
    from .record.hooks import BlockHooks as BlockHooks
    from .theory.check import theory_check as theory_check
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
