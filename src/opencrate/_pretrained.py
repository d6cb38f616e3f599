"""The one place where saved configurations, models, processors and tokenizers are opened.

Nothing in a folder is executed, and nobody is asked: a type that transformers does not know is refused, even if code
lies beside it. If you trust a folder's code, load it (`trust_remote_code=True`) and pass on the model.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ._files import (
    CONFIG,
    HUB_PREFIX,
    LOCAL,
    check_size,
    folder_of,
    locate,
    os_reason,
    path_problem,
    read_config_file,
    read_json,
    require_file,
    shown,
)
from ._memory import require_memory
from ._suggest import suggest
from ._values import Pixels, Positive, Within, field_error, fitted

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
FLOATING = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that weights may have."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_RUNS_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_CLEAR = (OSError, ValueError, SafetensorError, StrictDataclassError)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_SIZE = Pixels | list[Pixels] | dict[str, Pixels | None]
_PROCESSOR_FIELDS: dict[str, Any] = {
    "size": _SIZE,
    "crop_size": _SIZE,
    "image_mean": float | Annotated[list[float], Within(-1e6, 1e6)],
    "image_std": Positive | list[Positive],
    "rescale_factor": Positive,
    "resample": Literal[0, 1, 2, 3, 4, 5],
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), bool),
}
"""What the numbers of an image processor may be; transformers takes any, and fails at the first image."""
_TIMM = (None, "timm_wrapper")
"""The `model_type` of timm's config.json, as it is and as transformers completes it."""
_INCOMPLETE = "a file of it is missing or damaged; give a complete folder"
_INNER_WORDS = re.compile(r"\w+Error\b|<class |NoneType|invalid literal")
"""Python's own, in the messages of libraries."""


def read_config_fields(source: str | os.PathLike) -> dict[str, Any]:
    """What a folder's config.json holds, checked as far as it decides which code runs.

    Raises:
        ValueError: no folder, a damaged file, a model type that is unknown or missing, or a setting that would fetch
            code from the Hub.
    """
    fields, path = read_config_file(source), folder_of(source) / CONFIG
    _check_type(fields, path)
    for key, value in _nested(fields):
        if key in _RUNS_KERNELS and "/" in str(value):
            raise ValueError(
                f"{shown(path)}: '{key}' is {shown(value)}, which fetches and runs code of the Hub; remove it, or use "
                "'sdpa' or 'eager'"
            )
    return fields


def _check_type(fields: Mapping[str, Any], path: Path) -> None:
    known = transformers.CONFIG_MAPPING
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind in known:
        return
    if kind is None and "pretrained_cfg" in fields:
        raise ValueError(f"{shown(path)}: is of timm's form; make a folder of transformers' of it (family 'timm_vit')")
    code = "; the folder brings code for it, which is never run" if "auto_map" in fields else ""
    if kind is None:
        raise ValueError(f"{shown(path)}: names no model_type{code}; give a folder written by save_pretrained")
    hint = "" if len(str(kind)) > 50 else f"; {suggest(str(kind), known)}"
    if code:
        hint = ", so load it in Python yourself if you trust its author"
    raise ValueError(f"{shown(path)}: the model_type {shown(repr(kind))} is unknown{code}{hint}")


def _nested(fields: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in fields.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _nested(value)


def read_config(source: str | os.PathLike) -> PreTrainedConfig:
    """The configuration of a folder or of `hf://owner/name`.

    Raises:
        ValueError: none there, damaged, or of an unknown type.
    """
    where, options = locate(source)
    if options:
        read_config_fields(source)
    return _open(AutoConfig, source, "a configuration", where, **options)


def timm_fields(source: str | os.PathLike) -> dict[str, Any] | None:
    """The config.json of timm's form in a folder or at `hf://owner/name`; `None` where there is none of that form.

    It states an `architecture` and a `pretrained_cfg`, and no `model_type`. What cannot be read is for `read_config`.
    """
    where, local = locate(source)
    try:
        fields = read_config_file(source) if local else PreTrainedConfig.get_config_dict(where, revision="main")[0]
    except Exception:
        return None
    return fields if isinstance(fields.get("pretrained_cfg"), dict) and fields.get("model_type") in _TIMM else None


def read_model(
    cls: Any, source: str | os.PathLike, finite: bool = True, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A saved model, and which weights were missing, unexpected or of another shape.

    `cls` may be an Auto class, `source` is a folder or `hf://owner/name`, and `options` are for `from_pretrained`. With
    `finite`, weights that are NaN or infinite are refused.

    Raises:
        ValueError: no model there, damaged, incomplete, of an unknown type, an adapter, weights that are no floating
            numbers or not finite, or files outside the folder.
    """
    where, local = locate(source)
    if local:
        fields = read_config_fields(source)
        files = weight_files(Path(where))
        if (Path(where) / GENERATION).exists():
            options = {**options, **_generation(Path(where) / GENERATION, fields)}
    config = options.get("config") or read_config(source)
    config.return_dict = True  # callers read outputs by name
    require_memory(config, cls, f"{shown(source)}/{CONFIG}")
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **local, **options, "config": config}
    model, info = _open(cls, source, "a model", where, **options)
    if local and "quantization_config" not in fields:
        _check_dtypes(files, model)
    if finite:
        require_finite(model, source)
    return model, info


def require_finite(model: torch.nn.Module, source: Any) -> None:
    """Refuse, with a `ValueError`, a model whose weights hold NaN or infinity."""
    bad = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f"{shown(source)}: {len(bad)} of its weight tensors hold NaN or infinite numbers, the first is "
            f"{shown(bad[0])}; take an earlier checkpoint, or train again (`opencrate doctor` says more)"
        )


def _generation(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """An option that keeps a damaged generation_config.json from stopping those who do not generate."""
    try:
        GenerationConfig.from_dict(read_json(path))
        return {}
    except Exception as error:
        logger.warning("%s is left out: %s", GENERATION, reason(error))
        known = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in fields}
        return {"generation_config": GenerationConfig(**known)}


def read_generation(source: str | os.PathLike) -> None:
    """Refuse, with a `ValueError`, a damaged generation_config.json: for those who generate."""
    if str(source).startswith(HUB_PREFIX):
        return
    path = folder_of(source) / GENERATION
    if path.exists():
        fields = read_json(path, advice="replace it, or remove it")
        try:
            GenerationConfig.from_dict(fields)
        except Exception as error:
            raise ValueError(f"{shown(path)}: damaged ({reason(error)}); replace it, or remove it") from error


def read_image_processor(source: str | os.PathLike) -> Any:
    """The image processor beside a model.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    where, options = locate(source)
    path = Path(where) / "preprocessor_config.json"
    if options and not (path.exists() or (Path(where) / "processor_config.json").exists()):
        raise ValueError(
            f"{shown(source)}: no image processor there ({path.name}); copy that of the model's own folder"
        )
    if options and path.exists():
        fields = read_json(path, advice="copy that of the model's own folder")
        if "image_processor_type" not in fields and "feature_extractor_type" not in fields and "auto_map" in fields:
            raise ValueError(f"{shown(path)}: names no image_processor_type, only code, which is never run; name one")
        for name in _PROCESSOR_FIELDS.keys() & fields.keys():
            try:
                fitted(fields[name], _PROCESSOR_FIELDS[name] | None)
            except ValueError as error:
                raise field_error(f"{shown(path)}: '{name}'", fields[name], str(error)) from None
    return _open(AutoImageProcessor, source, "an image processor (preprocessor_config.json)", where, **options)


def read_tokenizer(cls: Any, source: str | os.PathLike, **options: Any) -> Any:
    """A tokenizer of `cls` (its class, or AutoTokenizer) from a folder or `hf://owner/name`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    text = str(source)
    if text.startswith(HUB_PREFIX):
        return _open(cls, source, "a tokenizer", text.removeprefix(HUB_PREFIX), **options)
    folder = folder_of(source)
    for name in (*_TOKENIZER_FILES, CONFIG):
        if (folder / name).exists():
            fields = read_json(folder / name)
            if name == CONFIG and "model_type" in fields:
                _check_type(fields, folder / name)
    return _open(cls, source, "a tokenizer", str(folder), **LOCAL, **options)


def _open(cls: Any, source: Any, what: str, where: str, **options: Any) -> Any:
    if "local_files_only" not in options:
        options.setdefault("revision", "main")  # the Hub's, also where an installed model has that name
    try:
        return cls.from_pretrained(where, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # a damaged folder makes the libraries trip in many ways
        local = "local_files_only" in options
        why = _INCOMPLETE if local and "huggingface.co" in str(error) else reason(error)
        raise ValueError(f"{shown(source)}: {what} cannot be loaded: {why}") from error


def reason(error: Exception) -> str:
    """Why a library could not read a file, in a line; its own message (KeyError: 'x') does not help a user."""
    if isinstance(error, OSError) and error.errno:
        return os_reason(error)
    strict, cause = isinstance(error, StrictDataclassError), error.__cause__
    text = " ".join(str(cause if strict and isinstance(cause, ValueError) else error).split())
    if "trust_remote_code" in text:
        return "it is of an unknown type with its own code, which is never run"
    if strict and (field := re.search(r"for field '(\w+)'", text)):
        return f"'{field[1]}' has a value of the wrong type"
    if not isinstance(error, _CLEAR) or isinstance(error, UnicodeError) or _INNER_WORDS.search(text):
        return "its content is not what such a file holds; it is damaged, or of another kind"
    return shown(text or type(error).__name__, 400)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, all of them there and none outside it.

    Raises:
        ValueError: a missing or damaged one, one outside the folder, or an adapter of another model.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{shown(folder)}: holds an adapter (adapter_config.json), which belongs to another model; merge both by "
            "`merge_and_unload()` in peft, and save that"
        )
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if not (folder / name).exists() and index.exists():
            return [_checked(folder / shard) for shard in shards_of(index)]
        if (folder / name).exists():
            return [_checked(folder / name)]
    raise ValueError(f"{shown(folder)}: holds no weights ({' or '.join(_WEIGHTS)}); give a complete folder")


def shards_of(index: Path) -> list[str]:
    """The names of the weight files that an index lists; each lies beside it.

    Raises:
        ValueError: a damaged index, a file elsewhere, or one that is missing.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{shown(index)}: damaged ('weight_map' names no files by weight); replace it")
    shards = sorted(set(places.values()))
    for name in shards:
        if PurePath(name).name != name or name in ("", "..") or "\\" in name or name.endswith(".json"):
            raise ValueError(f"{shown(index)}: names {shown(name)}, which is not a file beside it; replace it")
        if problem := path_problem(index.parent / name):
            raise ValueError(f"{shown(index)}: names {shown(name)}: {problem}; copy all of the model")
    return shards


def _checked(path: Path) -> Path:
    require_file(path, "a weight file")
    check_size(path, path.stat().st_size)
    if path.suffix == ".safetensors":
        safetensors_dtypes(path)
    else:
        check_torch_file(path)
    return path


def safetensors_dtypes(path: Path) -> dict[str, str]:
    """The type of each tensor in a safetensors file, in its own words (`F32`).

    Raises:
        ValueError: not a readable safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{shown(path)} is not a readable safetensors file: {reason(error)}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or the errors of `safetensors_dtypes`."""
    safetensors_dtypes(require_file(path, "a safetensors file"))
    return load_file(path)


def check_torch_file(path: Path) -> None:
    """Refuse, with a `ValueError`, a PyTorch file that unpacks to more than it is: torch does not compress its own."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{shown(path)} is not a readable PyTorch file, or damaged: {reason(error)}") from error
    if unpacked > 2 * path.stat().st_size + (1 << 20):
        raise ValueError(
            f"{shown(path)}: unpacks to {unpacked:,} bytes from {path.stat().st_size:,}, which no PyTorch file does; "
            "save the weights anew"
        )


def _check_dtypes(files: Iterable[Path], model: PreTrainedModel) -> None:
    """Refuse whole or 8-bit numbers where the model has floating weights; its counters and masks may be whole."""
    floating = {name for name, value in model.named_parameters() if value.is_floating_point()}
    prefix = f"{model.base_model_prefix}."
    for path in (one for one in files if one.suffix == ".safetensors"):
        for name, dtype in safetensors_dtypes(path).items():
            own = {name, name.removeprefix(prefix), prefix + name} & floating
            if dtype not in FLOATING and (own or name.endswith(".weight")):
                raise ValueError(
                    f"{shown(path)}: {shown(name)} holds numbers of type {dtype}; weights are {', '.join(FLOATING)}: "
                    "save the model in one of those"
                )
