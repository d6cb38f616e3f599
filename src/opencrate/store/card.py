"""The model card of a run: a README.md in the form of the Hugging Face Hub, from what the run wrote down."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from .._files import HUB_PREFIX, read_json, shown
from .._outputs import write_text
from .._pretrained import read_config
from ..recipe.load import load_recipe, shipped_recipes
from ..recipe.locations import missing_places
from ..recipe.schema import READ_BY, Recipe, recipe_value
from . import runs

CARD = "README.md"
PIPELINES = {
    "image-classification": "image-classification",
    "masked-autoencoding": "image-feature-extraction",
    "self-supervised": "image-feature-extraction",
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "sentence-classification": "text-classification",
}
"""A recipe's task -> the Hub's name of what its models are for, which is the task of their pipeline."""
_LICENSES = {
    "digits": "CC BY 4.0 (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI)",
    "stdlib": "PSF License Agreement (the source text of Python's standard library)",
}
_SCORES: dict[str, tuple[tuple[str, str, str, int], ...]] = {
    "image-classification": (("accuracy", "accuracy", "top-1 accuracy", 100),),
    "masked-autoencoding": (
        ("test.error_model.mean", "mse", "mean squared error of masked patches", 1),
        ("test.psnr.mean", "psnr", "PSNR of the reconstruction, dB", 1),
    ),
    "self-supervised": (
        ("knn", "accuracy", "accuracy of nearest neighbours", 100),
        ("linear", "accuracy", "accuracy of a linear probe", 100),
    ),
    "causal-lm": (
        ("bits_per_byte", "bits_per_byte", "bits per byte", 1),
        ("perplexity", "perplexity", "perplexity per token", 1),
    ),
    "masked-lm": (
        ("accuracy", "accuracy", "accuracy on masked tokens", 100),
        ("loss", "loss", "loss, nats per masked token", 1),
    ),
}
"""Task -> key in the metrics, the Hub's name of the metric, ours, and 100 for what is shown in per cent."""
_MOST_CHANGES = 20
_GLUE = ("accuracy", "f1", "matthews", "pearson", "spearman")


@dataclass(frozen=True)
class Score:
    """One number on held-out data, of one run or of several that differ in their seed.

    Attributes:
        key: in `metrics.json`, with dots.
        metric: the Hub's name of the metric.
        title: ours, for readers.
        values: one for each run, the described one first; shares are from 0 to 1.
        seeds: of these runs.
        factor: 100 for what readers get in per cent.
    """

    key: str
    metric: str
    title: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    factor: int = 1

    @property
    def value(self) -> str:
        """Of the described model, for readers."""
        return self._shown(self.values[0])

    @property
    def mean(self) -> float:
        """Over the runs."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the runs; `None` for one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def spread(self) -> str:
        """Mean and standard deviation over the seeds, for readers."""
        if self.deviation is None:
            return "not known"
        return f"{self._shown(self.mean)} ± {self._shown(self.deviation)}"

    @property
    def of(self) -> str:
        """The seeds, for readers."""
        return f"seed {self.seeds[0]}" + (f"; spread over seeds {_listed(self.seeds)}" if len(self.seeds) > 1 else "")

    def _shown(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.factor == 100 else f"{value:.4g}"


@dataclass(frozen=True)
class CardFacts:
    """What a card says that no run wrote down; `None` is what the run suggests.

    Attributes:
        title: the model's name.
        dataset: the data's name.
        data_license: the data's licence, in words.
        license: of the weights, as the Hub names licences.
        use: lines of Python that load the model.
        others: runs of the same recipe with other seeds, for the spread.
        measured: metrics of the described model in place of the run's, where its weights are not the run's own.
        notes: further sentences on its limits.
        recipe_file: where the whole recipe lies beside the card.
    """

    title: str | None = None
    dataset: str | None = None
    data_license: str | None = None
    license: str = "unknown"
    use: str | None = None
    others: Sequence[str | Path] = ()
    measured: Mapping[str, Any] | None = None
    notes: str = ""
    recipe_file: str = runs.RECIPE


def write_card(run: str | Path, facts: CardFacts | None = None, folder: str | Path | None = None) -> Path:
    """Write the card of a run into its folder, or into another; its path.

    Raises:
        ValueError: no complete run, or `others` that differ from it in more than the seed.
    """
    path = Path(run if folder is None else folder) / CARD
    write_text(path, str(model_card(run, facts)))
    return path


def model_card(run: str | Path, facts: CardFacts | None = None) -> ModelCard:
    """The card of a run, from its recipe, metrics, configuration and environment; as `write_card`."""
    facts = facts or CardFacts()
    recipe, metrics, config = runs.read_recipe(run), runs.read_metrics(run), read_config(run)
    title = facts.title or recipe.name
    data, scores = facts.dataset or dataset_name(recipe), scores_of(run, facts.others, facts.measured)
    words = {
        "title": shown(title),
        "what": _what(recipe, metrics, config),
        "data": _data(data, metrics["data"]),
        "data_license": facts.data_license or _license_of(recipe),
        "scores": scores,
        "about_spread": _about_spread(scores),
        "white_box": white_box_words(metrics.get("white_box")),
        "limits": " ".join(filter(None, (_limits(recipe, data), facts.notes))),
        "use": facts.use or use_of(recipe, "FOLDER"),
        "command": _command(recipe, facts.recipe_file),
        "made_with": _made_with(metrics, read_json(Path(run) / runs.ENVIRONMENT)),
        "recipe_file": facts.recipe_file,
    }
    part = str(metrics.get("part", "validation" if recipe.task == "sentence-classification" else "test"))
    front = _front(title, recipe.task, config, (data, part), scores, facts)
    return ModelCard.from_template(front, template_path=str(Path(__file__).with_name("model_card.md.jinja")), **words)


def scores_of(
    run: str | Path, others: Sequence[str | Path] = (), measured: Mapping[str, Any] | None = None
) -> list[Score]:
    """The scores of a run on its held-out data, and of `others` that differ from it in their seed alone.

    `measured` are metrics that take the place of the run's.

    Raises:
        ValueError: one of the others was trained by another recipe, or has the same seed as another.
    """
    recipe, metrics = runs.read_recipe(run), runs.read_metrics(run)
    all_metrics = [{**metrics, **(measured or {})}]
    for other in others:
        changed = runs.changed_keys(recipe, runs.read_recipe(other))
        if changed.pop("training.seed", None) is None or changed:
            why = runs.in_words(changed) or f"training.seed is {recipe.training.seed} in both"
            raise ValueError(f"{shown(other)}: no other seed of {shown(run)}: {why}")
        all_metrics.append(runs.read_metrics(other))
    seeds = tuple(one["seed"] for one in all_metrics)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"two of the runs have the same seed ({_listed(seeds)}); give one run of each seed")
    found = []
    for key, metric, title, factor in _SCORES.get(recipe.task, tuple((name, name, name, 1) for name in _GLUE)):
        values = tuple(_number(one, key) for one in all_metrics)
        if all(value is not None for value in values):
            found.append(Score(key, metric, title, values, seeds, factor))  # pyright: ignore[reportArgumentType]
    return found


def white_box_words(record: Any) -> str:
    """What the measurement at the end of a run says of its layers' two half-steps, in sentences."""
    rows = record.get("history") if isinstance(record, Mapping) else None
    if not rows:
        return "Not measured in this run. `opencrate analyze` measures which half-steps descend."
    last = rows[-1]
    before, after = last["subspace_rate_before"], last["subspace_rate"]
    falls = [number for number, pair in enumerate(zip(before, after), 1) if pair[1] < pair[0]]
    where = f" (layers {_listed(falls)})" if falls and len(falls) < len(before) else ""
    where = f" (layer {falls[0]})" if len(falls) == 1 < len(before) else where
    codes = ", ".join(f"{100 * share:.0f} %" for share in last["nonzero_fraction"])
    return (
        f"Mean over {record['images']} {record['split']} {record['inputs']} (coding rate with ε = {record['eps']}), at "
        "the end of training: the first half-step lowers the coding rate against the subspaces, R^c, in "
        f"{len(falls)} of {len(before)} layers{where}. The share of non-zero entries after the second half-step is, by "
        f"layer: {codes}. `opencrate analyze` measures more."
    )


def dataset_name(recipe: Recipe) -> str:
    """What the data of a recipe is called: its name on the Hub, its word, or the name of its folder or file."""
    path = str(recipe_value(recipe, f"{READ_BY[recipe.task][0]}.path"))
    return path.removeprefix(HUB_PREFIX) if path.startswith(HUB_PREFIX) else shown(Path(path).name)


def _front(
    title: str,
    task: str,
    config: PreTrainedConfig,
    held_out: tuple[str, str],
    scores: Sequence[Score],
    facts: CardFacts,
) -> ModelCardData:
    """The machine-readable part; `held_out` are the data's name and the part that the scores are of."""
    data, part = held_out
    crate = config.model_type.startswith("crate")
    results = [
        EvalResult(
            task_type=PIPELINES[task],
            dataset_type=re.sub(r"[^\w./-]+", "-", data).lower(),
            dataset_name=data,
            dataset_split=part,
            metric_type=score.metric,
            metric_name=score.title,
            metric_value=round(score.values[0], 6),
        )
        for score in scores
    ]
    return ModelCardData(
        model_name=title,
        license=facts.license,
        library_name="transformers",
        tags=[*(("crate", "white-box", "custom_code") if crate else ()), "opencrate"],
        datasets=[results[0].dataset_type] if results else None,
        metrics=sorted({score.metric for score in scores}) or None,
        pipeline_tag=PIPELINES[task],
        eval_results=results or None,
    )


def _what(recipe: Recipe, metrics: Mapping[str, Any], config: PreTrainedConfig) -> str:
    name = next(iter(config.architectures or ()), config.model_type)
    about = f" ({recipe.description})" if recipe.description else ""
    return (
        f"`{name}` with {metrics['parameters']:,} parameters, trained for the task {recipe.task} by the recipe "
        f"`{shown(recipe.name)}`{shown(about, 400)} of OpenCRATE."
    )


def _data(name: str, parts: Mapping[str, Any]) -> str:
    counts = []
    for part, facts in parts.items():
        if isinstance(facts, Mapping):
            unit = next((unit for unit in ("images", "tokens", "examples", "documents") if unit in facts), None)
            counts += [f"{facts[unit]:,} {unit} ({part})"] if unit else []
    return f"`{name}`" + (f": {', '.join(counts)}." if counts else ".")


def _license_of(recipe: Recipe) -> str:
    path = str(recipe_value(recipe, f"{READ_BY[recipe.task][0]}.path"))
    if path.startswith(HUB_PREFIX):
        return "that of the data set's own card"
    return _LICENSES.get(path, "not known to the program; state it before you publish the model")


def _about_spread(scores: Sequence[Score]) -> str:
    if any(score.deviation is not None for score in scores):
        return "The spread is the mean and the sample standard deviation over the seeds, each trained anew."
    return "This is one run of one seed, so the spread over seeds is not known."


def _limits(recipe: Recipe, data: str) -> str:
    reads = "texts" if READ_BY[recipe.task][0] != "data" else f"images of {recipe.data.image_size} pixels"
    return (
        f"A research model: it reads {reads}, and was trained and tested on `{data}` alone. Other data, robustness, "
        "calibration and bias were not examined."
    )


def use_of(recipe: Recipe, model: str) -> str:
    """Lines of Python that open the model, given its name or folder, for the card."""
    first = "import opencrate\n" if recipe.model.type.startswith("crate") else ""
    return f'{first}from transformers import pipeline\n\nmodel = pipeline("{PIPELINES[recipe.task]}", model="{model}")'


def _command(recipe: Recipe, file: str) -> str:
    """The command that trains the run again: a shipped recipe with what differs, else the file beside the card.

    Places of this machine become words in capitals.
    """
    name = next((name for name in shipped_recipes() if Path(name).name == recipe.name), None)
    places = missing_places(recipe)
    changed = runs.changed_keys(load_recipe(name), recipe) if name else {}
    after = {key: now for key, (before, now) in changed.items() if (before, now) != ({}, None)}
    removed = any(key.startswith("model.config.") and value is None for key, value in after.items())
    if name is None or removed or len(after) > _MOST_CHANGES:
        name, after = file, dict.fromkeys(places)
    words = (shlex.quote(f"{key}={places.get(key) or _value(value)}") for key, value in after.items())
    return " ".join(["opencrate train", name, *words])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _made_with(metrics: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {made[name]}" for name in ("opencrate", "torch", "transformers") if name in made)
    commit, _, changes = str(made.get("commit") or "").partition("+")
    source = f", commit {commit[:12]}{' with changes' if changes else ''}" if commit else ""
    machine = ", ".join(made.get("gpus") or [f"{made.get('cpu')} ({made.get('torch_threads')} torch threads)"])
    hours = metrics["seconds"] / 3600
    time = f"{metrics['seconds']:.0f} s" if hours < 1 else f"{hours:.1f} h"
    steps = f"{metrics['steps']:,} steps in {time} on {machine}"
    return f"{steps}; {versions}{source}"


def _number(metrics: Mapping[str, Any], key: str) -> float | None:
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
