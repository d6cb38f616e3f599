"""Recipes side by side: every arm with every seed, one run after another, and the measures of each run.

A sweep is a YAML file with the keys `name`, `description`, `reference` (the arm that the others are compared with),
`seeds`, `arms` (name -> recipe), and optionally `settings`, a list of `key=value` for every arm, and `untrained`, the
arm whose network is measured before its first step too, as the arm `untrained`.

Classifiers are compared by their accuracy and autoencoders by their error. Arms of several tasks, or without labels,
are compared by the features of their frozen encoders.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .._files import read_json
from .._outputs import write_json
from .._suggest import suggest
from .._values import Seed, allowed, field_error, fitted, shown_value
from ..recipe.load import load_recipe, shipped_sweeps
from ..recipe.schema import Recipe
from ..recipe.strict_yaml import read_mapping
from ..store import runs
from ..store.build import check_model

logger = logging.getLogger(__name__)

Match = Literal["parameters", "compute"]
MEASURED_IMAGES = 256
"""Test images for the layer measures, at most; accuracy uses all."""

UNTRAINED = "untrained"
"""The arm of networks before their first step."""
_WORDS = {str: "text", list: "list", dict: "mapping"}
_COMPARED = ("crate", "crate_mae")
"""Model types whose layers are measured; ablations of CRATE are settings of them."""
_KEYS = {"name": str, "description": str, "reference": str, "seeds": list, "settings": list, "arms": dict}
_KEYS |= {"untrained": str}
_OPTIONAL = ("settings", "untrained")
_COMPARED_ALONE = ("image-classification", "masked-autoencoding")
"""Tasks whose runs are compared by their own metrics, where all arms are of one of them."""


@dataclass(frozen=True)
class Sweep:
    """What is compared.

    Attributes:
        arms: name -> recipe of those that are trained.
        reference: the arm that the others are compared with: one of these, or "untrained".
        settings: `key=value` for every arm.
        untrained: the arm whose network before its first step is the arm "untrained"; empty for none.
    """

    name: str
    description: str
    reference: str
    seeds: tuple[int, ...]
    arms: dict[str, str]
    settings: tuple[str, ...] = ()
    untrained: str = ""

    @property
    def names(self) -> list[str]:
        """All arms in the order of the tables."""
        return [*([UNTRAINED] if self.untrained else []), *self.arms]


@dataclass(frozen=True)
class ArmRun:
    """One finished run, or a network before its first step.

    Attributes:
        directory: of the run.
        subspaces: what its rates are taken against.
        shape: K, d and p of these.
        values: of the keys of `sweep_measures.MEASURES`, `None` where one has no meaning.
        layers: of the keys of `sweep_measures.LAYERS`, one value per layer.
        claims: the predictions of the theory in words: whether each held, `None` where that is undecided.
    """

    arm: str
    seed: int
    directory: str
    subspaces: str
    shape: tuple[int, ...]
    values: dict[str, float | None]
    layers: dict[str, list[float]] = field(default_factory=dict)
    claims: dict[str, bool | None] = field(default_factory=dict)


def load_sweep(reference: str | Path) -> Sweep:
    """Read a shipped sweep by its name, or a file.

    Raises:
        ValueError: no such sweep or file; a key that is unknown, missing or of the wrong kind; a reference or an
            `untrained` that is no arm.
    """
    shipped = shipped_sweeps()
    path = shipped.get(str(reference), Path(reference).expanduser())
    if not path.is_file():
        raise ValueError(f"no sweep '{reference}': neither shipped nor a file; {suggest(str(reference), shipped)}")
    content = read_mapping(path)
    for key, value in content.items():
        if key not in _KEYS:
            raise ValueError(f"{path}: unknown key '{key}'; {suggest(str(key), _KEYS)}")
        if not isinstance(value, _KEYS[key]) or not value:
            raise ValueError(f"{path}: '{key}' must be a non-empty {_WORDS[_KEYS[key]]}; got {shown_value(value)}")
    missing = [key for key in _KEYS if key not in content and key not in _OPTIONAL]
    if missing:
        raise ValueError(f"{path}: '{missing[0]}' is missing")
    arms = {str(name): str(recipe) for name, recipe in content["arms"].items()}
    if UNTRAINED in arms:
        raise ValueError(f"{path}: '{UNTRAINED}' is the arm of networks before their first step; rename that of 'arms'")
    for key, extra in (("untrained", []), ("reference", [UNTRAINED] if "untrained" in content else [])):
        if content.get(key, next(iter(arms))) not in (known := [*arms, *extra]):
            raise ValueError(f"{path}: '{key}' must be one of the arms {', '.join(known)}; got {content[key]}")
    fields = {**content, "arms": arms, "seeds": _seeds(content["seeds"], f"{path}: 'seeds'")}
    return Sweep(**{**fields, "settings": tuple(map(str, content.get("settings", ())))})


def choose(sweep: Sweep, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Sweep:
    """The sweep with some of its arms and other seeds; unknown or equal ones are refused.

    The reference is always among them, and the arm that `untrained` needs.
    """
    for arm in arms or ():
        if arm not in sweep.names:
            raise ValueError(f"arms={arm}: sweep {sweep.name} has no arm '{arm}'; {suggest(arm, sweep.names)}")
    wanted = set(sweep.arms if arms is None else (*arms, sweep.reference, sweep.untrained))
    chosen = {name: recipe for name, recipe in sweep.arms.items() if name in wanted}
    return dataclasses.replace(sweep, arms=chosen, seeds=sweep.seeds if seeds is None else _seeds(seeds, "seeds"))


def arm_recipe(sweep: Sweep, arm: str, seed: int, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """The recipe of one run: the arm's, with the sweep's settings, then the overrides, then the seed.

    A smoke form is small: it takes no setting of the sweep that it has a value of its own for.

    Raises:
        ValueError: a bad recipe or override; the arm is named.
    """
    reference, settings = sweep.arms[arm], sweep.settings
    if smoke:
        shrunk = runs.changed_keys(load_recipe(reference), load_recipe(reference, smoke=True))
        settings = tuple(one for one in settings if one.partition("=")[0].strip() not in shrunk)
    try:
        return load_recipe(reference, [*settings, *overrides, f"training.seed={seed}"], smoke=smoke)
    except ValueError as error:
        raise ValueError(f"arm '{arm}': {error}") from error


def longer(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe with `ratio` times its steps, in `max_steps` or else in `num_train_epochs`."""
    training = recipe.training
    if training.max_steps > 0:
        changed = {"max_steps": max(1, round(training.max_steps * ratio))}
    else:
        changed = {"num_train_epochs": training.num_train_epochs * ratio}
    return dataclasses.replace(recipe, training=dataclasses.replace(training, **changed))


def run_sweep(
    sweep: Sweep,
    output: str | Path,
    overrides: Sequence[str] = (),
    match: Match = "parameters",
    smoke: bool = False,
    num_images: int = MEASURED_IMAGES,
) -> list[ArmRun]:
    """Train what is not trained yet, one run after another, and measure every run on its test images.

    Runs lie in `<output>/<arm>-seed<seed>`. A finished one is kept, an unfinished one resumed; measures are kept in
    `<output>/measures`. An interrupted sweep therefore resumes where it was.

    Args:
        sweep: what to run.
        output: folder for the runs.
        overrides: `key=value` for every arm.
        match: "parameters": as the recipes are. "compute": every arm takes as many steps as give it the reference's
            operations.
        smoke: the recipes' smoke forms.
        num_images: test images for the layer measures, at most.

    Raises:
        ValueError: a bad recipe, arms that cannot be compared, a finished run of another recipe in the output folder,
            or something else in a run's place (all before anything is trained); or several processes.
        KeyboardInterrupt, FloatingPointError, OSError: as `train`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a sweep runs in one process; start it without torchrun")
    output = Path(output).expanduser()
    if any(word.partition("=")[0].strip() == "training.seed" for word in overrides):
        raise ValueError("training.seed: a sweep gives every run its own seed; pass seeds=0,1,... instead")
    recipes = {
        (arm, seed): arm_recipe(sweep, arm, seed, overrides, smoke) for seed in sweep.seeds for arm in sweep.arms
    }
    _check_comparable(recipes)
    encoders = _as_encoders(recipes)
    if match == "compute":
        if encoders:
            raise ValueError(
                "match=compute: counts the operations of one forward, of which steps of different tasks take several; "
                "use match=parameters"
            )
        recipes = _at_equal_compute(recipes, sweep.reference)
    for arm in sweep.arms:
        check_model(recipes[arm, sweep.seeds[0]])
    for (arm, seed), recipe in recipes.items():
        _check_place(output / f"{arm}-seed{seed}", recipe)
    found = []
    for number, ((arm, seed), recipe) in enumerate(recipes.items(), start=1):
        logger.info("run %d of %d: %s, seed %d", number, len(recipes), arm, seed)
        directory = output / f"{arm}-seed{seed}"
        _train(recipe, directory)
        for name in (arm, *([UNTRAINED] if arm == sweep.untrained else [])):
            found.append(_measured(name, seed, directory, output / "measures", num_images, encoders))
    return found


def _check_comparable(recipes: dict[tuple[str, int], Recipe]) -> None:
    """Refuse arms whose measures are not known, or not the same."""
    for (arm, _), recipe in recipes.items():
        if recipe.model.type not in _COMPARED:
            raise ValueError(
                f"arm '{arm}': a {recipe.model.type} model; a sweep compares models of type {' or '.join(_COMPARED)}"
            )
    if not _as_encoders(recipes):
        return
    (first, _), reference = next(iter(recipes.items()))
    for (arm, _), recipe in recipes.items():
        for name, value in asdict(recipe.data).items():
            if value != (other := getattr(reference.data, name)):
                raise ValueError(
                    f"arm '{arm}': data.{name} is {value}, but {other} of arm '{first}'; arms of several tasks, or "
                    "without labels, are compared on the same images"
                )


def _as_encoders(recipes: Mapping[Any, Recipe]) -> bool:
    """Whether the arms have no metric of their own in common, and are compared by their features."""
    tasks = {recipe.task for recipe in recipes.values()}
    return len(tasks) > 1 or not tasks <= set(_COMPARED_ALONE)


def _at_equal_compute(recipes: dict[tuple[str, int], Recipe], reference: str) -> dict[tuple[str, int], Recipe]:
    """Every arm with as many steps as give it the reference's operations, counted in the model's forward."""
    from .sweep_measures import recipe_operations

    operations = {arm: recipe_operations(recipe) for (arm, _), recipe in recipes.items()}
    return {
        (arm, seed): longer(recipe, operations[reference] / operations[arm]) for (arm, seed), recipe in recipes.items()
    }


def _check_place(directory: Path, recipe: Recipe) -> None:
    """Refuse a finished run of another recipe in this place, or what no run can be written over.

    What a recipe leaves to the processor (`training.bf16: auto`) is as the run decided it, on this machine or another.
    """
    from ..training.precision import decided

    if not (directory / runs.METRICS).is_file():
        runs.check_place(directory, resume=True)
        return
    changed = runs.changed_keys(runs.read_recipe(directory), decided(recipe, directory))
    if changed:
        raise ValueError(
            f"{directory}: a run with other settings lies there ({runs.in_words(changed)}); choose another `output`"
        )


def _train(recipe: Recipe, directory: Path) -> None:
    from ..training.train import train

    if (directory / runs.METRICS).is_file():
        return
    try:
        train(recipe, directory, resume=True)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{directory.name}: stopped; the same command resumes there") from error


def _measured(arm: str, seed: int, directory: Path, folder: Path, num_images: int, encoders: bool) -> ArmRun:
    """The measures of a run, from the file where they were kept if they were taken in the same way."""
    from .sweep_measures import measure_run

    path = folder / f"{arm}-seed{seed}.json"
    kept: dict[str, Any] = read_json(path, advice="remove it, and it is measured again") if path.is_file() else {}
    way = {"num_images": num_images, "weights": _mark(directory), "encoders": encoders}
    if {key: kept.get(key) for key in way} != way:
        kept = {**way, **measure_run(directory, num_images, encoders, untrained=arm == UNTRAINED)}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    values = (kept[name] for name in ("values", "layers", "claims"))
    return ArmRun(arm, seed, str(directory), kept["subspaces"], tuple(kept["shape"]), *values)


def _mark(directory: Path) -> str:
    """Tells the weights of one run from another's."""
    import hashlib

    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def _seeds(seeds: Sequence[Any], where: str) -> tuple[int, ...]:
    try:
        found = fitted(list(seeds), list[Seed])
        distinct = 0 < len(found) == len(set(found))
    except ValueError:
        distinct = False
    if not distinct:
        raise field_error(where, list(seeds), f"a list of different numbers, each {allowed(Seed)}")
    return tuple(found)
