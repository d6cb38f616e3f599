"""Convert a published checkpoint to a folder that every command reads, or back.

  opencrate convert crate_base.pth crate-base --family crate --num-attention-heads 12
  opencrate convert crate-demo.pth crate-demo --family crate --num-attention-heads 6 position_interpolation=scale
  opencrate convert crate_tiny.pth crate-tiny --family crate --num-attention-heads 6 --class-names imagenet
  opencrate convert vit-folder vit-tiny --family timm_vit
  opencrate convert ckpt.pt crate-lm --family crate_lm --tokenizer gpt2-folder
  opencrate convert crate-base crate_base.pth --to-official

The first form writes config.json, model.safetensors and the image processor, of a language model the tokenizer that
--tokenizer names; --class-names gives a classifier's classes names. Sizes that the tensors do not show are given as
options, any other field of the configuration as field=value. SOURCE is a file or folder that a common trainer wrote
(Lightning, timm, DINO, accelerate, ...); of several sets of weights the averaged one is taken (with a notice), and
--weights KEY takes another. The last form writes a classifier or a causal language model under the official names with
the same values, as .pth, .pt or .safetensors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from .._files import path_problem, shown
from .._outputs import check_output
from .._values import Within
from .._weights import is_packaged_name
from .common import Parser, image_size, number_of, prepare_libraries, print_result, say

HELP = "convert a published checkpoint, or back"
HEADS = Annotated[int, Within(1, 2**20)]
FAMILIES = "crate, crate_alpha, crate_mae, timm_vit, crate_lm or crate_lm_overcomplete"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate convert`."""
    add = parser.add_argument
    parser.takes_overrides = True
    parser.usage = "opencrate convert SOURCE OUTPUT [field=value ...] [options]"
    add("source", metavar="SOURCE", help="checkpoint file, or a saved folder (--to-official)")
    add("output", metavar="OUTPUT", help="folder to write, or a file (--to-official)")
    add("--family", metavar="NAME", help=FAMILIES)
    add("--num-attention-heads", type=number_of(HEADS), metavar="K")
    add("--image-size", type=image_size, metavar="PIXELS", help="224, or height and width: 224x160")
    add("--patch-size", type=image_size, metavar="PIXELS", help="16, or 16x8")
    add(
        "--weights",
        metavar="KEY",
        help="which of several sets in the file, e.g. model beside model_ema (default: averaged)",
    )
    add("--pool", choices=("cls", "mean"), default="cls")
    add("--class-names", metavar="FILE", help="of a classifier: one name a line or JSON, or imagenet (WordNet numbers)")
    add("--tokenizer", metavar="FOLDER", help="of a language model: a folder, or hf://owner/name")
    add("--to-official", action="store_true", help="from a saved folder to official names")
    add("--overwrite", action="store_true", help="replace what lies at OUTPUT")


def run(arguments: argparse.Namespace) -> int:
    """Convert in the asked direction."""
    if not arguments.to_official and arguments.family is None:
        raise ValueError(f"--family is missing: which published family is the checkpoint? {FAMILIES}")
    named = arguments.source.startswith("hf://") or is_packaged_name(arguments.source)
    if not named and (problem := path_problem(arguments.source)):
        raise ValueError(f"{shown(arguments.source)}: {problem}")
    prepare_libraries(arguments.debug)
    if arguments.to_official and arguments.overrides:
        raise ValueError(f"'{arguments.overrides[0]}': fields are read from the saved folder with --to-official")
    (_to_official if arguments.to_official else _from_official)(arguments)
    print_result(arguments, {"output": arguments.output}, lambda: say(f"wrote {arguments.output}"))
    return 0


def _from_official(arguments: argparse.Namespace) -> None:
    from ..conversion import load_official
    from ..recipe.strict_yaml import parse_value
    from ..store.runs import check_place, new_directory

    check_place(arguments.output, arguments.overwrite, inputs=(arguments.source, arguments.tokenizer))
    names = ("num_attention_heads", "image_size", "patch_size", "pool", "weights")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    words = (word.partition("=") for word in arguments.overrides)
    options |= {name: parse_value(value, name) for name, _, value in words}
    model: Any = load_official(arguments.source, arguments.family, **options)
    if arguments.class_names is not None:
        _name_classes(model, arguments.class_names)
    is_text = model.config.model_type == "crate_text"
    companion = _tokenizer(arguments.tokenizer, model) if is_text else _image_processor(arguments, model)
    with new_directory(arguments.output, arguments.overwrite) as working:
        model.save_pretrained(working)
        if companion is not None:
            companion.save_pretrained(working)


def _name_classes(model: Any, source: str) -> None:
    from ..data.images.class_names import ORDER, name_classes, read_class_names

    if model.config.model_type not in ("crate", "vit"):
        raise ValueError(f"--class-names {source}: a {model.config.model_type} model has no classes")
    if source == ORDER:
        raise ValueError("--class-names order: goes by the classes of images, so it is for `opencrate evaluate --data`")
    name_classes(model.config, read_class_names(source), f"--class-names {source}")


def _image_processor(arguments: argparse.Namespace, model: Any) -> Any:
    from .._pretrained import timm_fields
    from ..configuration_crate import pair
    from ..conversion.timm import timm_processor
    from ..image_processing_crate import CrateImageProcessor

    if arguments.tokenizer is not None:
        raise ValueError(f"--tokenizer is for language models; family {arguments.family} reads images")
    if (Path(arguments.source) / "config.json").is_file() and (fields := timm_fields(arguments.source)):
        return timm_processor(fields)
    height, width = pair(model.config.image_size)
    return CrateImageProcessor(
        size={"shortest_edge": round(max(height, width) * 256 / 224)},  # the paper's: 256 for a crop of 224
        crop_size={"height": height, "width": width},
        **({"image_mean": [0.449], "image_std": [0.226]} if model.config.num_channels == 1 else {}),  # means of three
    )


def _tokenizer(source: str | None, model: Any) -> Any:
    """The tokenizer to lie beside a language model; the model's special tokens become the tokenizer's."""
    if source is None:
        return None
    from ..data.text.tokenizers import check_vocabulary, load_tokenizer

    tokenizer = load_tokenizer(source)
    check_vocabulary(tokenizer, model.config, "--tokenizer")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
    tokenizer.model_max_length = model.config.max_position_embeddings
    return tokenizer


def _to_official(arguments: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    from ..conversion import Model, to_official
    from ..store.saved import open_saved

    output = Path(arguments.output)
    if output.suffix not in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"{output}: give a file name that ends in .pth, .pt or .safetensors")
    check_output(output, [arguments.source])
    if output.is_dir():
        raise ValueError(f"{shown(output)}: is a folder; give a file name")
    if output.exists() and not arguments.overwrite:
        raise ValueError(f"{output}: exists; choose another file, or pass --overwrite to replace it")
    saved = open_saved(arguments.source, ("classifier", "autoencoder", "causal"))
    if not isinstance(saved.model, Model):
        raise ValueError(f"{saved.source}: a {saved.model.config.model_type} model; only CRATE has official names")
    tensors = to_official(saved.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name[:50]}.") as folder:
        partial = Path(folder) / output.name
        if output.suffix == ".safetensors":  # tied tensors are one in memory, and the format stores each by itself
            save_file(
                {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}, partial
            )
        else:
            torch.save(tensors, partial)
        os.replace(partial, output)
