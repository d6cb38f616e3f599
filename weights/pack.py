"""Put a trained model into the package opencrate-weights: bf16 weights, processor or tokenizer, card, manifest entry.

  python weights/pack.py runs/digits-seed0 --name digits --license mit
  python weights/pack.py runs/c10-seed0 runs/c10-seed1 runs/c10-seed2 --name cifar10 --license mit --dataset CIFAR-10 \\
      --data-license "none stated by its authors; research use"

The first RUN is packed. The others are of the same recipe with other seeds, and give the spread. Nothing is unpickled,
and nothing of the run that names this machine is taken over. The packed model is read back and compared with the run's
on inputs of the run's own held-out data: it is refused if rounding the weights to bf16 changes its outputs by more than
--tolerance (relative to their standard deviation), or if a file, the model or the package becomes too large.

Running it again with the same --name and --overwrite replaces the model. `--remove NAME` takes one out.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import opencrate
from opencrate._files import read_json, shown
from opencrate._outputs import write_json, write_text
from opencrate._weights import OWNER
from opencrate.recipe.load import recipe_yaml
from opencrate.recipe.locations import portable
from opencrate.store import card, runs
from opencrate.store.inputs import input_batches
from opencrate.store.publish import PORTABLE_RECIPE, SETTINGS
from opencrate.store.saved import SavedModel, open_saved

PACKAGE = Path(__file__).parent / "src" / "opencrate_weights"
MODEL_LIMIT, PACKAGE_LIMIT = 12_000_000, 40_000_000
"""Bytes of one model's files, and of all models together."""
TOLERANCE = 0.05
"""Root mean square change of the outputs, in standard deviations of the outputs."""
_WEIGHTS, _MANIFEST = "model.safetensors", "manifest.json"
_OF_PLACES = ("_name_or_path", "auto_map", "name_or_path", "tokenizer_file")
"""Fields of configurations that name the machine, or code that is not packed."""
_OUTPUTS = ("logits", "last_hidden_state", "pooler_output")


def main(argv: list[str] | None = None) -> int:
    """Pack one model; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "runs", metavar="RUN", nargs="*", type=Path, help="finished runs that differ in their seed; the first is packed"
    )
    add("--name", help="the model is then opencrate/NAME")
    add("--license", default="unknown", help="licence of the weights, as the Hub names it, such as mit")
    add("--dataset", help="name of the data (default: as the recipe's path ends)")
    add("--data-license", help="licence of the data, in words")
    add("--notes", default="", help="sentences for the card's limits")
    add("--tolerance", type=float, default=TOLERANCE, help=f"of the outputs (default {TOLERANCE})")
    add("--package", type=Path, default=PACKAGE, help="folder of the package's module")
    add("--overwrite", action="store_true", help="replace a packed model of that name")
    add("--remove", metavar="NAME", help="take a model out of the package")
    given = parser.parse_args(argv)
    try:
        if given.remove is not None:
            remove(given.remove, given.package)
        elif not given.runs or not given.name:
            parser.error("give RUN and --name")
        else:
            facts = {key: getattr(given, key) for key in ("license", "dataset", "data_license", "notes")}
            print(pack(given.runs, given.name, given.package, given.tolerance, given.overwrite, **facts))
    except ValueError as error:
        print(f"pack: error: {error}", file=sys.stderr)
        return 2
    return 0


def pack(
    sources: list[Path],
    name: str,
    package: Path = PACKAGE,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    **facts: Any,
) -> str:
    """Pack the first run as `name`; what was done, in a line. `facts` are fields of `card.CardFacts`.

    Raises:
        ValueError: no complete run, a name that is taken or no plain name, outputs that change too much, or too many
            bytes. The package is then as it was.
    """
    models = read_json(package / _MANIFEST)["models"]
    _check_name(name, models, package, overwrite)
    run, others = sources[0], sources[1:]
    scores = card.scores_of(run, others)
    with tempfile.TemporaryDirectory(dir=package, prefix=".packing.") as working:
        made = Path(working) / name
        made.mkdir()
        _copy_settings(run, made)
        _write_weights(run, made)
        change = changed_outputs(run, made)
        if not change <= tolerance:
            raise ValueError(
                f"{shown(run)}: in bf16 its outputs change by {change:.4f} of their standard deviation, more than the "
                f"tolerance {tolerance}; pack another model, or raise the tolerance"
            )
        _write_card(run, made, change, others, facts)
        entry = _entry(run, made, scores, change, facts)
        _check_size(name, entry, models)
        _put(made, package / name)
    write_json(package / _MANIFEST, {"format": 1, "models": dict(sorted({**models, name: entry}.items()))})
    size = sum(file["bytes"] for file in entry["files"].values())
    return f"packed {OWNER}{name}: {size / 1e6:.2f} MB, outputs change by {change:.4f} of their standard deviation"


def remove(name: str, package: Path = PACKAGE) -> None:
    """Take a model out of the package."""
    models = read_json(package / _MANIFEST)["models"]
    if name not in models:
        raise ValueError(f"{name}: not in the package, which holds {', '.join(models) or 'nothing'}")
    write_json(package / _MANIFEST, {"format": 1, "models": {key: one for key, one in models.items() if key != name}})
    shutil.rmtree(package / name, ignore_errors=True)


def changed_outputs(run: Path, made: Path, num_inputs: int = 32) -> float:
    """Root mean square difference of a packed model's outputs from its run's, over the standard deviation of these.

    Both are computed in float32, on the first inputs that the run held out.
    """
    saved = open_saved(run)
    batch = next(iter(input_batches(saved, batch_size=num_inputs)))
    before, after = _outputs(saved, batch), _outputs(open_saved(made), batch)
    return float((after - before).pow(2).mean().sqrt() / before.std())


def _outputs(saved: SavedModel, batch: Any) -> Tensor:
    fields = {name: value.to(saved.model.device) for name, value in batch.items() if name != "labels"}
    torch.manual_seed(0)  # an autoencoder draws the patches that it masks
    with torch.no_grad():
        found = saved.model.float()(**fields)
    return next(getattr(found, name) for name in _OUTPUTS if getattr(found, name, None) is not None).float()


def _check_name(name: str, models: dict[str, Any], package: Path, overwrite: bool) -> None:
    if not name or not all(character.isascii() and (character.isalnum() or character in "-._") for character in name):
        raise ValueError(f"--name {name!r}: give letters, digits, '-', '.' and '_'")
    if name.startswith((".", "_")) or name.endswith(".py") or (name not in models and (package / name).exists()):
        raise ValueError(f"--name {name!r}: is in the package's way; choose another")
    if name in models and not overwrite:
        raise ValueError(f"--name {name!r}: is packed already; pass --overwrite to replace it")


def _copy_settings(run: Path, made: Path) -> None:
    """The configuration, and what makes inputs, without fields that name this machine."""
    for name in (name for name in SETTINGS if (run / name).is_file()):
        if name.endswith(".json") and name != "tokenizer.json":
            fields = {key: value for key, value in read_json(run / name).items() if key not in _OF_PLACES}
            write_json(made / name, {**fields, **({"dtype": "float32"} if name == "config.json" else {})})
        else:
            shutil.copyfile(run / name, made / name)


def _write_weights(run: Path, made: Path) -> None:
    """The tensors in bf16; config.json says float32, so that they are read as such."""
    tensors = load_file(run / _WEIGHTS)
    rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(rounded, made / _WEIGHTS, {"format": "pt"})
    (made / _WEIGHTS).chmod(0o644)


def _write_card(run: Path, made: Path, change: float, others: list[Path], facts: dict[str, Any]) -> None:
    title = OWNER + made.name
    rounded = (
        "The weights are those of the run rounded to bf16, and read as float32; on held-out inputs this changes the "
        f"outputs by {change:.4f} of their standard deviation (root mean square). The result above is that of the run."
    )
    notes = " ".join(filter(None, (rounded, facts.get("notes"))))
    recipe = runs.read_recipe(run)
    write_text(made / PORTABLE_RECIPE, recipe_yaml(portable(recipe)))
    given = {**facts, "title": title, "use": card.use_of(recipe, title), "others": others, "notes": notes}
    card.write_card(run, card.CardFacts(**given, recipe_file=PORTABLE_RECIPE), made)


def _entry(run: Path, made: Path, scores: list[card.Score], change: float, facts: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a model."""
    recipe, metrics = runs.read_recipe(run), runs.read_metrics(run)
    return {
        "task": recipe.task,
        "pipeline_tag": card.PIPELINES[recipe.task],
        "class": read_json(made / "config.json")["architectures"][0],
        "dataset": facts.get("dataset") or card.dataset_name(recipe),
        "data_license": facts.get("data_license"),
        "license": facts.get("license", "unknown"),
        "recipe": recipe.name,
        "commit": read_json(run / runs.ENVIRONMENT).get("commit"),
        "opencrate": opencrate.__version__,
        "parameters": metrics["parameters"],
        "scores": [
            {
                **{"name": score.title, "value": score.values[0], "mean": score.mean, "deviation": score.deviation},
                **{"seeds": list(score.seeds), "percent": score.factor == 100},
            }
            for score in scores
        ],
        "bf16_change": round(change, 6),
        "files": {path.name: _file(path) for path in sorted(made.iterdir())},
    }


def _file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _check_size(name: str, entry: dict[str, Any], models: dict[str, Any]) -> None:
    size = bytes_of(entry)
    if size > MODEL_LIMIT:
        raise ValueError(
            f"--name {name}: takes {size:,} bytes, but a model may take {MODEL_LIMIT:,}; pack a smaller one"
        )
    total = size + sum(bytes_of(one) for key, one in models.items() if key != name)
    if total > PACKAGE_LIMIT:
        raise ValueError(
            f"--name {name}: the package would take {total:,} bytes, but it may take {PACKAGE_LIMIT:,}; remove a model"
        )


def bytes_of(entry: dict[str, Any]) -> int:
    """Bytes of a model's files, as its manifest entry states them."""
    return sum(file["bytes"] for file in entry["files"].values())


def _put(made: Path, final: Path) -> None:
    """Put a complete folder in its place; the one before is kept until then."""
    old = made.with_name("old")
    if final.exists():
        final.rename(old)
    made.rename(final)


if __name__ == "__main__":
    sys.exit(main())
