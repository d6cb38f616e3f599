"""Masks and attention maps as files and as a contact sheet: pictures first, numbers beside them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from .._outputs import write_whole
from ..analysis.masks.files import SegmentedFile
from ..analysis.masks.segment import MEAN, Mask, Segmented
from ..analysis.segmentation.arrays import Array
from ..analysis.segmentation.attention_masks import head_mean
from ..analysis.segmentation.coco_results import coco_results
from ..stats.words import plural
from .figures import short
from .html import Report, picture

PAGE = "segmentation.html"
FILES = (PAGE, "masks.json", "heads.png", "overlays", "masks", "maps")
"""What a folder of results may hold."""
_KINDS = {"overlays": "png", "masks": "png", "maps": "npy"}
_COLOURS = ("#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#0072B2")  # Okabe-Ito; blue last, as skies are blue
_TEMPLATE = "segmentation.html.j2"
_OVERLAY, _THUMB = 1 << 20, 320
_CELL, _DPI = 1.0, 120
_PLAIN_SCORE = 1.0  # of masks without one: evaluators need a number


@dataclass
class Sheet:
    """Files of segmented pictures, written one by one, and what the page will show of them.

    Attributes:
        folder: exists.
        rows: pictures that the page shows; all are in the files.
        maps: whether every head's attention is written too.
        written: what the folder holds of this result, by names from there; `masks.json` comes with the page.
    """

    folder: Path
    rows: int
    maps: bool = False
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    written: set[str] = field(default_factory=lambda: {"masks.json"})

    def add(self, one: SegmentedFile) -> None:
        """Write a picture's overlay, index mask and, where wanted, maps; each whole or not at all."""
        name = _free_name(one.file, [image["name"] for image in self.images])
        masks = shown_masks(one.found.masks)
        layered = overlay(one.picture, [mask.pixels for mask in masks])
        self._write(f"overlays/{name}.png", _encoded(layered, "PNG"))
        self._write(f"masks/{name}.png", _encoded(index_mask([mask.pixels for mask in masks], one.picture), "PNG"))
        if self.maps and one.found.maps is not None:
            buffer = io.BytesIO()
            np.save(buffer, one.found.maps)
            self._write(f"maps/{name}.npy", buffer.getvalue())
        number = len(self.images) + 1
        self.images.append(_image(number, name, one))
        self.annotations += _annotations(number, one.found.masks, len(self.annotations) + 1)
        if len(self.cards) < self.rows:
            self.cards.append(_card(name, one, layered))

    def coco(self, info: dict[str, Any]) -> dict[str, Any]:
        """`masks.json`: a COCO data set whose annotations are COCO results too."""
        category = {"id": 1, "name": "object", "supercategory": ""}
        return {"info": info, "images": self.images, "categories": [category], "annotations": self.annotations}

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data)
        self.written.add(name)


def listed_files(folder: Path) -> set[str]:
    """What a result that is there already may have written besides its page, by its own list of pictures.

    Names in the list that no result of ours has are left out, and so is everything where the list cannot be read.
    """
    try:
        images = json.loads((folder / "masks.json").read_text(encoding="utf-8"))["images"]
        names = [one["name"] for one in images]
    except (OSError, ValueError, LookupError, TypeError):
        names = []
    ours = [name for name in names if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name, re.ASCII)]
    of_pictures = {f"{kind}/{name}.{ending}" for name in ours for kind, ending in _KINDS.items()}
    return {"heads.png", "masks.json", *of_pictures}


def remove_former(folder: Path, former: set[str], written: set[str]) -> None:
    """Delete what a replaced result has left, after the new one is complete; a folder that is then empty goes too."""
    for name in former - written:
        (folder / name).unlink(missing_ok=True)
    for kind in _KINDS:
        if (folder / kind).is_dir() and not any((folder / kind).iterdir()):
            (folder / kind).rmdir()


def page_of(sheet: Sheet, title: str, record: Sequence[tuple[str, str]], about: str) -> Report:
    """The contact sheet: every picture beside its masks, with their scores and sizes.

    Args:
        sheet: at least one picture was added.
        title: of the page.
        record: (name, text) of what was run.
        about: the method, in a sentence.
    """
    found = [sum(one["image_id"] == image["id"] for one in sheet.annotations) for image in sheet.images]
    some = sum(count > 0 for count in found)
    summary = (
        f"{plural(len(sheet.images), 'picture')}, {plural(len(sheet.annotations), 'mask')}; "
        f"{some} of the pictures {'has' if some == 1 else 'have'} at least one.",
        about,
        "The model never saw a mask in training, and these masks were compared with none: how good they are is said by "
        "ground truth only, beside what masks reach that look at no picture.",
    )
    left = len(sheet.images) - len(sheet.cards)
    note = f"The first {len(sheet.cards)} pictures; {left} more are in the files." if left else ""
    files = {"masks.json": sheet.coco(dict(record))}
    values = {"cards": sheet.cards, "note": note, "heads": None}
    first = sheet.images[0]
    subtitle = f"layer {first['layer']}, {first['patches'][0]} x {first['patches'][1]} patches of the first picture"
    return Report(title, subtitle, summary, (), tuple(record), (), files, PAGE, _TEMPLATE, values)


def heads_page(
    png: bytes, size: tuple[int, int], title: str, record: Sequence[tuple[str, str]], layer: int, by: str
) -> Report:
    """The grid of heads on a page.

    Args:
        png: of `heads_png`, and `size` its width and height.
        title: of the page.
        record: (name, text) of what was run.
        layer: whose heads they are.
        by: whose attention it is, as `TokenViews.looked_at_by`.
    """
    summary = (
        f"Every row is a picture, every column one head of the layer: how much the {by} looks at each patch there.",
        "Read a column from top to bottom: a head that follows one kind of region does so in every picture.",
        "Every panel is stretched from 0 to its own largest value, so that colours of two panels do not compare.",
    )
    heads = {"image": _uri(png, "png"), "width": size[0], "height": size[1]}
    values = {"cards": [], "note": "The same picture is in heads.png.", "heads": heads}
    return Report(
        title, f"layer {layer}, attention of the {by}", summary, (), tuple(record), (), {}, PAGE, _TEMPLATE, values
    )


def plot_heads(found: Sequence[tuple[str, Image.Image, Array]]) -> Figure:
    """The same heads across pictures.

    Args:
        found: of each picture its name, itself, and its maps `(K, rows, columns)`, of one layer.
    """
    heads = len(found[0][2])
    tall = [image.height / image.width for _, image, _ in found]
    figure = Figure(figsize=((heads + 2) * _CELL, sum(tall) * _CELL + 0.06 * len(found) + 0.2), layout="constrained")
    axes = figure.subplots(len(found), heads + 2, squeeze=False, height_ratios=tall)
    for row, (name, image, maps) in zip(axes, found):
        row[0].imshow(np.asarray(_small(image).convert("RGB")))
        row[0].set_ylabel(short(name, 16), fontsize=6)
        mean = head_mean(maps.reshape(heads, -1)).reshape(1, *maps.shape[1:])
        for place, one in zip(row[1:], np.concatenate([maps, mean])):
            place.imshow(one, cmap="viridis", vmin=0, extent=(0, image.width, image.height, 0))
        for place in row:
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
    for place, words in zip(axes[0], ["picture", *(f"head {number}" for number in range(1, heads + 1)), MEAN]):
        place.set_title(words, fontsize=7, pad=2)
    return figure


def heads_png(found: Sequence[tuple[str, Image.Image, Array]]) -> tuple[bytes, tuple[int, int]]:
    """`plot_heads` as PNG, and its width and height in pixels."""
    png = picture(plot_heads(found), dpi=_DPI)
    with Image.open(io.BytesIO(png)) as image:
        return png, image.size


def shown_masks(masks: Sequence[Mask]) -> list[Mask]:
    """The masks that one picture can show: all, or of many heads their mean, since heads lie over one another."""
    mean = [mask for mask in masks if mask.label == MEAN]
    return mean or list(masks)


def overlay(image: Image.Image, masks: Sequence[Array]) -> Image.Image:
    """The picture with masks `(height, width)` in colour and their borders drawn; at most a million pixels."""
    scale = min(1.0, (_OVERLAY / (image.width * image.height)) ** 0.5)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.convert("RGB").resize(size)).astype(np.float32)
    width = max(1, round(min(size) / 200))
    for number, mask in enumerate(masks):
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        colour = _colour(number)
        border = small & np.logical_not(ndimage.binary_erosion(small, iterations=width))
        pixels[small] = 0.55 * pixels[small] + 0.45 * colour
        pixels[border] = colour
    return Image.fromarray(pixels.round().astype(np.uint8))


def index_mask(masks: Sequence[Array], image: Image.Image) -> Image.Image:
    """A palette image of the picture's size: 0 outside, i in the i-th mask; where two lie over one another the first.

    Raises:
        ValueError: more than 255 masks.
    """
    if len(masks) > 255:
        raise ValueError(f"masks: {len(masks)}; a palette image has room for 255")
    index = np.zeros((image.height, image.width), dtype=np.uint8)
    for number, mask in reversed(list(enumerate(masks, 1))):
        index[mask] = number
    found = Image.fromarray(index)
    found.putpalette([0, 0, 0, *(int(part) for number in range(255) for part in _colour(number))])
    return found


def _colour(number: int) -> Array:
    """Red, green and blue of the mask with this number from 0, in 0 to 255."""
    return np.array(matplotlib.colors.to_rgb(_COLOURS[number % len(_COLOURS)])) * 255


def _image(number: int, name: str, one: SegmentedFile) -> dict[str, Any]:
    height, width = one.picture.height, one.picture.width
    rest = {"name": name, "read_at": list(one.found.size), "patches": list(one.found.grid), "layer": one.found.layer}
    return {"id": number, "file_name": str(one.file), "height": height, "width": width, **rest}


def _annotations(image_id: int, masks: Sequence[Mask], first: int) -> list[dict[str, Any]]:
    """COCO results with what a data set's annotations need besides; a mask without a score has 1."""
    entries = []
    for mask in masks:
        score = _PLAIN_SCORE if mask.score is None else mask.score
        for entry in coco_results(image_id, mask.pixels[None], [score]):
            area = int(mask.pixels.sum())
            entries.append({"id": first + len(entries), **entry, "area": area, "iscrowd": 0, "label": mask.label})
    return entries


def _card(name: str, one: SegmentedFile, layered: Image.Image) -> dict[str, Any]:
    """A picture as the page shows it."""
    masks = []
    for number, mask in enumerate(shown_masks(one.found.masks)):
        red, green, blue = (int(part) for part in _colour(number))
        score = "" if mask.score is None else f"score {mask.score:.2f}, "
        words = f"{mask.label}: {score}{100 * mask.pixels.mean():.0f} % of the picture"
        masks.append({"words": words, "colour": f"rgb({red},{green},{blue})"})
    pictures = [_thumb(one.picture, "the picture"), _thumb(layered, "its masks in colour")]
    return {"name": name, "pictures": pictures, "masks": masks, "maps": _map_thumbs(one.found)}


def _map_thumbs(found: Segmented) -> list[dict[str, Any]]:
    """Every head's map, where maps were recorded."""
    if found.maps is None:
        return []
    thumbs = []
    for number, one in enumerate(found.maps, 1):
        shades = matplotlib.colormaps["viridis"](one / max(float(one.max()), 1e-30))[..., :3]
        image = Image.fromarray((shades * 255).astype(np.uint8))
        thumbs.append(_thumb(image, f"head {number}", size=(found.size[1], found.size[0])))
    return thumbs


def _thumb(image: Image.Image, alt: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    small = _small(image) if size is None else image.resize(_fitted(size, 96), Image.Resampling.NEAREST)
    uri = data_uri(small.convert("RGB"), "JPEG" if size is None else "PNG")
    return {"image": uri, "width": small.width, "height": small.height, "alt": alt}


def _small(image: Image.Image) -> Image.Image:
    return image.resize(_fitted(image.size, _THUMB), Image.Resampling.BILINEAR)


def _fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return buffer.getvalue()


def data_uri(image: Image.Image, kind: str) -> str:
    """A picture as the address that a page shows it by; `kind` is PNG or JPEG."""
    return _uri(_encoded(image, kind), kind.lower())


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _free_name(file: Path, taken: Sequence[str]) -> str:
    """A name for a picture's files: its own without odd characters, numbered where there is one already."""
    stem = re.sub(r"[^\w.-]", "_", file.stem, flags=re.ASCII).lstrip(".")[:80] or "picture"
    lower, name, number = {one.lower() for one in taken}, stem, 2
    while name.lower() in lower:
        name, number = f"{stem}-{number}", number + 1
    return name
