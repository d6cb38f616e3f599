"""The image processor of CRATE models: resize, centre crop, rescale, normalise, with PIL only."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

__all__ = ["CrateImageProcessor"]


class CrateImageProcessor(PilBackend):
    """The paper's evaluation transform: shortest side to 256, centre crop 224, ImageNet mean and deviation.

    For another native size pass ``size={"shortest_edge": s}`` and ``crop_size={"height": h, "width": w}``.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}  # noqa: RUF012 (transformers' convention)
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012 (transformers' convention)
    do_convert_rgb = None
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
