"""Convert a published checkpoint to a folder that every command reads, or back.

  opencrate convert crate_base.pth crate-base --family crate --num-attention-heads 12
  opencrate convert crate-demo.pth crate-demo --family crate --num-attention-heads 6 position_interpolation=scale
  opencrate convert crate-base crate_base.pth --to-official

The first form writes config.json, model.safetensors and the image processor; sizes that the tensors do not tell are
given as options, any other field of the configuration as field=value. The second writes a classifier under the
official names with the same values, as .pth, .pt or .safetensors.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .common import Parser, positive_int, prepare_libraries

HELP = "convert a published checkpoint, or back"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate convert`."""
    parser.takes_overrides = True
    parser.usage = "opencrate convert SOURCE OUTPUT [field=value ...] [options]"
    parser.add_argument("source", metavar="SOURCE", help="checkpoint file, or a saved folder (--to-official)")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write, or a file (--to-official)")
    parser.add_argument("--family", metavar="NAME", help="crate, crate_alpha or crate_mae")
    parser.add_argument("--num-attention-heads", type=positive_int, metavar="K")
    parser.add_argument("--image-size", type=_size, metavar="PIXELS", help="224, or height and width: 224x160")
    parser.add_argument("--patch-size", type=_size, metavar="PIXELS", help="16, or 16x8")
    parser.add_argument("--pool", choices=("cls", "mean"), default="cls")
    parser.add_argument("--to-official", action="store_true", help="from a saved folder to official names")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies at OUTPUT")


def run(arguments: argparse.Namespace) -> int:
    """Convert in the asked direction."""
    if not arguments.to_official and arguments.family is None:
        raise ValueError(
            "--family is missing: which published family is the checkpoint? crate, crate_alpha or crate_mae"
        )
    if not Path(arguments.source).exists() and not arguments.source.startswith("hf://"):
        raise ValueError(f"{arguments.source}: no such file or folder")
    prepare_libraries(arguments.debug)
    if arguments.to_official and arguments.overrides:
        raise ValueError(f"'{arguments.overrides[0]}': fields are read from the saved folder with --to-official")
    (_to_official if arguments.to_official else _from_official)(arguments)
    print(f"wrote {arguments.output}")
    return 0


def _from_official(arguments: argparse.Namespace) -> None:
    from ..conversion import load_official
    from ..image_processing_crate import CrateImageProcessor
    from ..training.runs import check_free, new_directory

    check_free(arguments.output, arguments.overwrite)
    options = {
        "num_attention_heads": arguments.num_attention_heads,
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "pool": arguments.pool,
    }
    model = load_official(arguments.source, arguments.family, **{**options, **_fields(arguments.overrides)})
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    processor = CrateImageProcessor(
        size={"shortest_edge": round(max(height, width) * 256 / 224)},  # the paper's: 256 for a crop of 224
        crop_size={"height": height, "width": width},
    )
    with new_directory(arguments.output, arguments.overwrite) as working:
        model.save_pretrained(working)
        processor.save_pretrained(working)


def _to_official(arguments: argparse.Namespace) -> None:
    from ..conversion import to_official
    from ..training.models import load_saved

    output = Path(arguments.output)
    if output.suffix not in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"{output}: give a file name that ends in .pth, .pt or .safetensors")
    if output.exists() and not arguments.overwrite:
        raise ValueError(f"{output}: exists; choose another file, or pass --overwrite to replace it")
    model, _ = load_saved(arguments.source)
    if model.config.model_type not in ("crate", "crate_mae"):
        raise ValueError(f"{arguments.source}: a {model.config.model_type} model; only CRATE has official names")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    _save(to_official(model), partial, output.suffix)
    os.replace(partial, output)


def _save(tensors: dict[str, Any], path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        import torch

        torch.save(tensors, path)


def _fields(overrides: list[str]) -> dict[str, Any]:
    """`field=value` words, values in YAML."""
    import yaml

    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in overrides)}


def _size(text: str) -> int | tuple[int, int]:
    """argparse type: `224`, or `224x160` for height and width."""
    numbers = [positive_int(part) for part in text.split("x")]
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"'{text}' is neither one number nor height x width, like 224x160")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
