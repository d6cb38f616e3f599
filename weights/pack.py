"""Put a trained model into the package opencrate-weights: bf16 weights, processor or tokenizer, card, manifest entry.

  python weights/pack.py runs/digits-seed0 --name digits --license mit
  python weights/pack.py runs/c10-seed0 runs/c10-seed1 runs/c10-seed2 --name cifar10 --license mit --dataset CIFAR-10 \\
      --data-license "none stated by its authors; research use"

The first RUN is packed. The others are of the same recipe with other seeds, and give the spread. Nothing is unpickled,
and nothing of the run that names this machine is taken over. The packed model is read back and evaluated as at the end
of the run, on the run's own data, which has to be there (--data, if not where the recipe says): the card states this
result. It is refused if rounding the weights to bf16 changes its outputs by more than --tolerance (relative to their
standard deviation), or if a file, the model or the package becomes too large.

Running it again with the same --name and --overwrite replaces the model. `--remove NAME` takes one out.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from opencrate.recipe.schema import READ_BY, Recipe
from opencrate.store import card, runs
from opencrate.store.publish import SETTINGS
from opencrate.store.saved import SavedModel, open_saved
from opencrate.training.tasks import Parts, Task, task_of
from opencrate.training.tasks.base import held_out_batches

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
    add("--data", type=Path, metavar="PATH", help="the runs' data, where it is not where their recipe says")
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
            print(pack(given.runs, given.name, given.package, given.tolerance, given.overwrite, given.data, **facts))
    except ValueError as error:
        print(f"pack: error: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Setting:
    """What the run that is packed was trained and tested on, built again.

    Attributes:
        run: its folder.
        recipe: its recipe, with the data's place on this machine.
        task, parts: how it is tested, and on what.
    """

    run: Path
    recipe: Recipe
    task: Task
    parts: Parts

    @classmethod
    def of(cls, run: Path, data: Path | None) -> Setting:
        """That of a run; `ValueError` if the data is not the run's, or nothing of it was held out."""
        recipe = runs.read_recipe(run)
        section = READ_BY[recipe.task][0]
        changed = {} if data is None else {"path": str(data.absolute())}
        if section == "text":  # its own tokenizer, instead of training one again
            changed["tokenizer"] = str(run.absolute())
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **changed)})
        task = task_of(recipe.task)
        parts = task.build(recipe, runs.left_out_bad(run))
        if parts.data != runs.read_metrics(run)["data"]:
            raise ValueError(
                f"{shown(run)}: the data at {section}.path is not what it was trained on; give --data PATH"
            )
        if parts.test is None:
            raise ValueError(f"{shown(run)}: held nothing out that its result could be measured on; pack another run")
        return cls(run, recipe, task, parts)

    def metrics_of(self, made: Path) -> dict[str, Any]:
        """What a model comes to on the held-out data, as at the end of a run; the model computes in float32."""
        return self.task.test(open_saved(made).model.float(), self.parts, self.recipe)


def pack(
    sources: list[Path],
    name: str,
    package: Path = PACKAGE,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    data: Path | None = None,
    **facts: Any,
) -> str:
    """Pack the first run as `name`; what was done, in a line. `facts` are fields of `card.CardFacts`.

    Raises:
        ValueError: no complete run, data that is not the run's, a name that is taken or no plain name, outputs that
            change too much, or too many bytes. The package is then as it was.
    """
    models = read_json(package / _MANIFEST)["models"]
    _check_name(name, models, package, overwrite)
    run, others = sources[0], sources[1:]
    card.scores_of(run, others)  # refuses runs that are no seeds of each other, before the work
    setting = Setting.of(run, data)
    with tempfile.TemporaryDirectory(dir=package, prefix=".packing.") as working:
        made = Path(working) / name
        made.mkdir()
        _copy_settings(run, made)
        _write_weights(run, made)
        _write_start(setting, made)
        change = changed_outputs(setting, made)
        if not change <= tolerance:
            raise ValueError(
                f"{shown(run)}: in bf16 its outputs change by {change:.4f} of their standard deviation, more than the "
                f"tolerance {tolerance}; pack another model, or raise the tolerance"
            )
        measured = setting.metrics_of(made)
        scores = card.scores_of(run, others, measured)
        _write_card(setting, made, change, {**facts, "others": others, "measured": measured})
        entry = _entry(run, made, scores, change, facts)
        _check_size(name, entry, models)
        _put(made, package / name)
    write_json(package / _MANIFEST, {"format": 1, "models": dict(sorted({**models, name: entry}.items()))})
    return f"packed {OWNER}{name}: {bytes_of(entry) / 1e6:.2f} MB; {_in_words(run, scores, change)}"


def remove(name: str, package: Path = PACKAGE) -> None:
    """Take a model out of the package."""
    models = read_json(package / _MANIFEST)["models"]
    if name not in models:
        raise ValueError(f"{name}: not in the package, which holds {', '.join(models) or 'nothing'}")
    write_json(package / _MANIFEST, {"format": 1, "models": {key: one for key, one in models.items() if key != name}})
    shutil.rmtree(package / name, ignore_errors=True)


def changed_outputs(setting: Setting, made: Path, num_inputs: int = 32) -> float:
    """Root mean square difference of a packed model's outputs from its run's, over the standard deviation of these.

    Both are computed in float32, on the first inputs that the run held out.
    """
    batch = next(iter(held_out_batches(setting.parts.test, setting.recipe)))
    batch = {name: value[:num_inputs] for name, value in batch.items() if name != "labels"}
    before, after = (_outputs(open_saved(place), batch) for place in (setting.run, made))
    return float((after - before).pow(2).mean().sqrt() / before.std())


def _outputs(saved: SavedModel, batch: Mapping[str, Tensor]) -> Tensor:
    torch.manual_seed(0)  # a model may draw what it masks
    with torch.no_grad():
        found = saved.model.float()(**{name: value.to(saved.model.device) for name, value in batch.items()})
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


def _write_start(setting: Setting, made: Path) -> None:
    """The whitened patch embedding, in float32, that comparisons with the untrained model start from."""
    if (setting.run / runs.START).is_file():
        shutil.copyfile(setting.run / runs.START, made / runs.START)
        (made / runs.START).chmod(0o644)
    elif setting.recipe.model.starts_whitened:
        raise ValueError(
            f"{shown(setting.run)}: holds no {runs.START}, the whitened patch embedding that it started with; copy it "
            "from where the run was made"
        )


def _write_card(setting: Setting, made: Path, change: float, facts: dict[str, Any]) -> None:
    run, title = setting.run, OWNER + made.name
    own = "; ".join(f"{score.title} {score.value}" for score in card.scores_of(run))
    rounded = (
        "The weights are those of the run rounded to bf16, and read as float32; on held-out inputs this changes the "
        f"outputs by {change:.4f} of their standard deviation (root mean square). The result above was measured with "
        f"these rounded weights; that of the run itself is: {own}."
    )
    notes = " ".join(filter(None, (rounded, facts.get("notes"))))
    recipe = runs.read_recipe(run)
    write_text(made / runs.PORTABLE_RECIPE, recipe_yaml(portable(recipe)))
    given = {**facts, "title": title, "use": card.use_of(recipe, title), "notes": notes}
    card.write_card(run, card.CardFacts(**given, recipe_file=runs.PORTABLE_RECIPE), made)


def _in_words(run: Path, scores: list[card.Score], change: float) -> str:
    """What the packed model comes to, beside its run, for the terminal."""
    both = zip(scores, card.scores_of(run))
    found = "; ".join(f"{packed.title} {packed.value} (run {own.value})" for packed, own in both)
    return f"{found}; outputs change by {change:.4f} of their standard deviation"


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
