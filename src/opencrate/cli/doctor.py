"""Check a trained model for the signatures of a failed training.

  opencrate doctor runs/digits-seed0
  opencrate doctor folder-of-a-model --data photos --json

Each check has a threshold with a reason (docs/doctor.md); what a model or folder lacks is "not checked", with why.
Images are the run's validation part where it has one, else its test part. Exit code: 0 no check failed, 1 at least one
failed (with --strict also when one warned), 2 bad input.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .common import Parser, add_model_and_images, positive_int, prepare_libraries, print_table

HELP = "check a run for failure signatures"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate doctor`."""
    add_model_and_images(parser)
    parser.add_argument("--num-images", type=positive_int, default=256, metavar="N", help="at most (default: 256)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings too")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and say by the exit code."""
    prepare_libraries(arguments.debug)
    from ..analysis.doctor import diagnose

    model, inputs, missing = _gather(arguments)
    name = str(arguments.model)
    found = diagnose(model, num_images=arguments.num_images, name=name, missing=missing, **inputs)
    print(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False)) if arguments.json else _print(found)
    return 0 if found.healthy(arguments.strict) else 1


def _gather(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """The model, what there is to check it with, and why the rest is missing."""
    from ..analysis.whitebox import HUB_PREFIX, load_model
    from ..training.saved import open_saved

    folder = Path(arguments.model).expanduser()
    inputs: dict[str, Any] = {}
    missing: dict[str, str] = {}
    reason = _no_images(folder) if not arguments.model.startswith(HUB_PREFIX) else "images need a local folder"
    if reason:
        if arguments.data:
            raise ValueError(f"--data {arguments.data}: {reason}; leave --data out to check the weights alone")
        missing["images"] = missing["training images"] = reason
        model = load_model(arguments.model)
    else:
        saved = open_saved(folder)
        model = saved.model
        _add_images(saved, arguments, inputs, missing)
    _add_log(folder, inputs, missing)
    return model, inputs, missing


def _no_images(folder: Path) -> str | None:
    """Why a folder's model cannot be given images, or `None`."""
    from ..analysis.whitebox import locate

    locate(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not any(name.endswith("ForImageClassification") for name in config.get("architectures") or []):
        return "images are given to image classifiers only"
    if not (folder / "preprocessor_config.json").is_file():
        return "the folder has no preprocessor_config.json, so images cannot be prepared"
    return None


def _add_images(saved: Any, arguments: argparse.Namespace, inputs: dict[str, Any], missing: dict[str, str]) -> None:
    """Held-out and training images; data that the user did not name may be missing."""
    held_out = bool(saved.recipe and saved.recipe.data.validation_fraction)
    split = "validation" if held_out and not arguments.data else "test"
    try:
        inputs["batches"] = saved.batches(saved.images(arguments.data, split, arguments.skip_bad))
    except (ValueError, OSError) as error:
        if arguments.data:
            raise
        missing["images"] = f"no images: {error}"
    if saved.recipe is None or arguments.data or "images" in missing:
        missing["training images"] = "training images are known for a run's own data only"
        return
    inputs["train_batches"] = saved.batches(saved.images(None, "train", arguments.skip_bad))


def _add_log(folder: Path, inputs: dict[str, Any], missing: dict[str, str]) -> None:
    """The training log of a run directory."""
    from ..training.runs import LOG

    path = folder / LOG
    if not path.is_file():
        missing["log"] = f"no {LOG} in the folder"
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        inputs["log"] = [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged ({error}); remove it to check the rest") from error


def _print(found: Any) -> None:
    from ..analysis.doctor import FAIL, NOT_CHECKED, OK, WARN

    print_table(("check", "verdict", "evidence"), [(one.check, one.verdict, one.evidence) for one in found.findings])
    for one in found.findings:
        if one.advice:
            print(f"{one.verdict} {one.check}: {one.advice}")
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in (OK, WARN, FAIL, NOT_CHECKED))
    print(f"{found.model}: {counts}")
