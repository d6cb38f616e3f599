"""The image processor of CRATE models: one reading of every picture, then resize, crop, rescale, normalise, with PIL.

`read_picture` and `as_grey_or_colour` are how a file becomes pixels everywhere: in training, evaluation and analysis,
in every command, in this processor, and through it in pipelines.
"""

import os
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, infer_channel_dimension_format
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

_ORIENTATION = 0x0112  # EXIF
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_LUMINANCE = np.array([299, 587, 114], np.float32).reshape(3, 1, 1) / 1000  # ITU-R 601-2, as PIL's mode L


def read_picture(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """The first frame of an image file, decoded, in the file's own mode and orientation."""
    with Image.open(source) as picture:
        picture.load()
    return picture


def as_grey_or_colour(picture: Image.Image, num_channels: int) -> Image.Image:
    """A picture of any mode as 8-bit `L` (`num_channels=1`) or `RGB` (3), turned as its EXIF tag says.

    Transparency is dropped, as transformers' pipelines do. Of 16-bit values the high byte counts, as in PIL's reading
    of 16-bit colour. Modes `I` and `F` do not say their range: see `eight_bits`.

    Raises:
        ValueError: values of which no range fits.
    """
    picture.load()
    if _orientation(picture) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":
        picture = Image.fromarray(eight_bits(np.asarray(picture)))
    if picture.mode in ("La", "RGBa"):  # colours multiplied by the transparency
        picture = picture.convert(picture.mode.upper())
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")  # PIL converts every mode to it, and grey ones to L and back without loss
    mode = "L" if num_channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Pixel values of any type as uint8 of the same shape.

    Of 16-bit types the high byte counts. Wider whole numbers and fractions do not say their range; it is the first of
    0 to 1 (fractions only), 0 to 255 and 0 to 65535 that holds all of them.

    Raises:
        ValueError: values outside all of these, or not finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    fractions = values.dtype.kind == "f"
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if not (np.isfinite(least) and np.isfinite(most) and least >= 0 and most <= 65535):
        raise ValueError(
            f"pixel values from {least:g} to {most:g}; they must go from 0 to 255, 0 to 65535 or, as fractions, 0 to 1 "
            "(with do_rescale=False the processor takes others)"
        )
    if most > 255:
        return (values.astype(np.float64) / 256).astype(np.uint8)
    scale = 255 if fractions and most <= 1 else 1
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


class CrateImageProcessor(PilBackend):
    """The paper's evaluation transform: shortest side to 256, centre crop 224, ImageNet mean and deviation.

    For another native size pass ``size``: ``{"shortest_edge": s}`` or ``{"height": h, "width": w}``; the crop is
    then s x s or h x w unless ``crop_size`` says less. One value in ``image_mean`` makes grey images, three make
    colour ones, of every input: PIL images, files, NumPy arrays, torch tensors (channels first or last, or none for
    grey), or lists of them.
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

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("size") is not None and kwargs.get("crop_size") is None:
            size = self._standardize_kwargs(size=kwargs["size"], default_to_square=True)["size"]
            edge = size.shortest_edge
            height, width = (edge, edge) if edge else (size.height, size.width)
            if height and width:
                kwargs["crop_size"] = {"height": height, "width": width}
        super().__init__(**kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """As transformers', but files are read as everywhere in OpenCRATE, and grey arrays need no channel axis."""
        images = image_url_or_urls
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if _is_file(images):
            return read_picture(images)
        if getattr(images, "ndim", None) == 2:
            return images[None]
        return super().fetch_images(images)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image as `(C, H, W)`: uint8, or floats as they are where they are not to be rescaled."""
        channels = _num_channels(kwargs.get("image_mean", self.image_mean))
        if channels not in (1, 3):
            return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)
        if isinstance(image, Image.Image):
            return _channels_first(np.asarray(as_grey_or_colour(image, channels)))
        array = _array_of(image, input_data_format)
        if array.dtype.kind == "f" and not kwargs.get("do_rescale", self.do_rescale):
            return _with_channels(array, channels)
        pixels = np.ascontiguousarray(eight_bits(array).transpose(1, 2, 0))
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels, _MODES[pixels.shape[2]])
        return _channels_first(np.asarray(as_grey_or_colour(picture, channels)))

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """As transformers', but a crop larger than the resized image is refused: it would be a border of zeros."""
        kwargs = super()._standardize_kwargs(**kwargs)
        size, crop = kwargs["size"], kwargs["crop_size"]
        if not (kwargs.get("do_center_crop") and kwargs.get("do_resize") and size and crop):
            return kwargs
        height, width = (size.shortest_edge,) * 2 if size.shortest_edge else (size.height, size.width)
        if height and width and (crop.height > height or crop.width > width):
            raise ValueError(
                f"crop_size={crop.height}x{crop.width} is larger than size={height}x{width}, to which images are "
                "resized before; give a smaller crop_size, or do_center_crop=False"
            )
        return kwargs


def _is_file(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and os.path.isfile(source)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or none that can be read."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL's EXIF reader can raise anything on damaged bytes; the pixels are still good
        return 1
    return value if value in range(1, 9) else 1


def _num_channels(image_mean: Any) -> int:
    """How many channels a mean is of; one number for all of them is meant for colour."""
    return len(image_mean) if isinstance(image_mean, (list, tuple)) else 3


def _array_of(image: Any, layout: str | ChannelDimension | None) -> np.ndarray:
    """A tensor or array as NumPy `(C, H, W)` with 1 to 4 channels."""
    array = image
    if not isinstance(array, np.ndarray):
        array = image.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # NumPy has no bfloat16
    if layout is None:
        try:
            layout = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        except ValueError:
            layout = infer_channel_dimension_format(array, num_channels=2)  # grey with transparency
    array = np.moveaxis(array, -1, 0) if layout == ChannelDimension.LAST else array
    if len(array) not in _MODES:
        raise ValueError(f"image of shape {tuple(array.shape)}: {len(array)} channels, but images have 1 to 4")
    return array


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Fractions `(C, H, W)` as grey or colour, without transparency."""
    array = array[: len(array) - 1] if len(array) in (2, 4) else array
    if len(array) == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=0)
    return (array * _LUMINANCE).sum(0, keepdims=True, dtype=array.dtype)
