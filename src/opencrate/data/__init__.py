"""From a path to labelled images or blocks of tokens."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .images.sources import load_images as load_images
    from .options import (
        Augmentation as Augmentation,
        GlueData as GlueData,
        ImageData as ImageData,
        TextData as TextData,
        Views as Views,
    )
    from .segmentation.load import load_masks as load_masks
    from .text.glue import load_glue as load_glue
    from .text.load import load_text as load_text
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
