"""What a saved model's JSON files say of the inputs that its weights were trained on, as keys of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import folder_of, read_json
from ..data.text.options import TRAINED, GlueData
from .schema import READ_BY

PROCESSOR, CONFIG, TOKENIZER = "preprocessor_config.json", "config.json", "tokenizer_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_CONTEXT = ("max_position_embeddings", "n_positions")
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""PIL's filters by their numbers, which is how a saved image processor names them."""


def source_settings(source: str | Path, task: str) -> dict[str, Any]:
    """Dotted recipe keys with the values that the weights in a folder were trained with, as far as its files tell.

    Images: `data.num_channels`, `image_size`, `resize_size` (a [height, width] is one that no recipe can state),
    `image_mean`, `image_std` (of pixels from 0 to 1) and `interpolation`. Text: `text.tokenizer` and `block_size`;
    of sentences `glue.max_length`, where the model has room for fewer tokens than a recipe takes by default. A folder
    that does not exist says nothing.

    Raises:
        ValueError: a file of the folder that is no JSON mapping.
    """
    folder = folder_of(source)
    config = _read(folder / CONFIG)
    if "data" in READ_BY[task]:
        return _of_images(_read(folder / PROCESSOR), config)
    length = _context(config, _read(folder / TOKENIZER))
    if task == "sentence-classification":
        return {"glue.max_length": length} if length is not None and length < GlueData.max_length else {}
    found = {} if length is None else {"text.block_size": length}
    return {"text.tokenizer": str(source), **found} if has_tokenizer(folder) else found


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def keep_settings(stated: Mapping[str, Any], overridden: set[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a source that a recipe takes over, because it does not state another value.

    What a recipe states wins, with one exception: a kind of tokenizer that is made from the training text is for
    training from scratch, since its tokens would mean other words than the source's; on the command line it wins too
    (`overridden` are the keys that the command line states, `stated` all). A centre crop goes with its image size.
    """
    asked = set(stated)
    if "text.tokenizer" not in overridden and stated.get("text.tokenizer") in TRAINED:
        asked -= {"text.tokenizer"}
    if stated.get("data.image_size", settings.get("data.image_size")) != settings.get("data.image_size"):
        asked |= {"data.resize_size"}
    kept = {key: value for key, value in settings.items() if key not in asked}
    resize = kept.get("data.resize_size")
    return {**kept, "data.resize_size": min(resize)} if isinstance(resize, list) else kept


def _of_images(processor: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    found = {"num_channels": config.get("num_channels"), **_geometry(processor, config), **_normalisation(processor)}
    channels = found["num_channels"] or 3
    for name in ("image_mean", "image_std"):
        values = found.get(name)
        if isinstance(values, (int, float)):
            found[name] = [float(values)] * channels
    number = processor.get("resample")
    if isinstance(number, int) and 0 <= number < len(INTERPOLATIONS):
        found["interpolation"] = INTERPOLATIONS[number]
    unknown = ("resize_size",) if "image_size" in found else ()  # null is a value there
    return {f"data.{name}": value for name, value in found.items() if value is not None or name in unknown}


def _geometry(processor: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """`image_size`, and `resize_size` before the centre crop."""
    size, crop = _pixels(processor.get("size")), _pixels(processor.get("crop_size"))
    if not processor.get("do_resize", True):
        size = None
    if processor.get("do_center_crop") and crop is not None and isinstance(processor.get("size"), Mapping):
        return {"image_size": _short(crop), "resize_size": None if size == crop else _short(size)}
    target = size if isinstance(size, list) else config.get("image_size")
    return {} if target is None else {"image_size": _short(target), "resize_size": None}


def _normalisation(processor: dict[str, Any]) -> dict[str, Any]:
    """Mean and deviation for pixels from 0 to 1, for any range of the processor's own."""
    if not processor:
        return {}
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = 0.0, 1.0
    span = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    if abs(span - 1) < 1e-6:
        return {"image_mean": mean, "image_std": std}
    return {"image_mean": _divided(mean, span), "image_std": _divided(std, span)}


def _divided(values: Any, span: float) -> Any:
    return values / span if isinstance(values, (int, float)) else [value / span for value in values or ()] or None


def _pixels(size: Any) -> Any:
    """[height, width], the shortest edge as a number, or `None`."""
    if not isinstance(size, Mapping):
        return size if isinstance(size, int) else None
    if "shortest_edge" in size:
        return size["shortest_edge"]
    return [size["height"], size["width"]] if {"height", "width"} <= size.keys() else None


def _short(size: Any) -> Any:
    """One number for a square."""
    return size[0] if isinstance(size, list) and size[0] == size[1] else size


def _context(config: dict[str, Any], tokenizer: dict[str, Any]) -> int | None:
    """Tokens that the model reads at most."""
    limits = [tokenizer.get("model_max_length"), *(config.get(name) for name in _CONTEXT)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1 << 30]
    return min(known, default=None)


def _read(path: Path) -> dict[str, Any]:
    """A JSON mapping; empty if there is no such file."""
    return read_json(path, advice="train or convert again") if path.is_file() else {}
