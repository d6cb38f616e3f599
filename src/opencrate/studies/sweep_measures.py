"""What the runs of a sweep are compared by: accuracy, rates, sparsity, and how readable maps and features are.

Where arms have no metric of their own in common, the features of their frozen encoders take its place.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from ..analysis.layers.analyze import INITIAL, TRAINED
from ..analysis.layers.claims import CODES, claims
from ..analysis.layers.registry import MEASURES as OF_LAYERS, Measure
from ..analysis.layers.result import LayerMeasures, layer_measures
from ..analysis.record.states import describe_states, has_maps, record
from ..configuration_crate import pair
from ..data.images.labelled import label_names
from ..data.images.sources import ImageSplits, load_images
from ..evaluation.probe import features, last_layer, probe
from ..evaluation.representation import accuracies, judge
from ..objective import sparsity
from ..recipe.schema import Recipe
from ..registry import LEARNED
from ..store.build import AUTO_MODELS, build_config
from ..store.saved import SavedModel, open_saved
from ..training.tasks.self_supervision import FITTED, evenly, with_labels

EPS = 0.5
"""ε of the coding rates."""
PROBE_IMAGES = 5000
"""The linear probe is fitted on at most this many training images, and evaluated on as many test images."""
_BATCH = 64

_LINEAR = "logistic regression on the frozen encoder, C chosen on held-out training images"
_POOLED = f"on the pooled token after the last LN; fitted on at most {FITTED:,} images, counted on all test images"
MEASURES: dict[str, Measure] = {
    "accuracy": Measure("accuracy", "%", "on all test images", scale=100),
    "error": Measure("masked-patch error", "", "squared error on the masked patches of the test images", digits=4),
    "psnr": Measure("PSNR", "dB", "of whole reconstructed test images"),
    "knn": Measure("k-NN", "%", f"20 neighbours by cosine, votes exp(cos/0.07), {_POOLED}", scale=100),
    "linear": Measure("linear probe", "%", f"{_LINEAR}, {_POOLED}", scale=100),
    "linear_patches": Measure(
        "linear probe, patches", "%", f"{_LINEAR}, on the mean of the patch tokens after the last LN", scale=100
    ),
    "loss": Measure("loss", "", "the task's own on the test images: cross-entropy in nats, or squared error", digits=3),
    "compression": Measure(
        "R^c(Z^{ℓ+½}) − R^c(Z^ℓ)", "nats", "change of R^c in the first half of a layer, mean over layers; per image"
    ),
    "subspace_rate": Measure("R^c, last layer", "nats", "R^c(Z^{ℓ+½} | U^ℓ) of the last layer; per image"),
    "rate_reduction": Measure("ΔR, last layer", "nats", "R − R^c of Z^{ℓ+½} in the last layer; per image"),
    "nonzero": Measure(
        "non-zero", "%", "‖Z^{ℓ+1}‖_0 / (d N), entries exactly zero count as zero; mean over layers", scale=100
    ),
    "hoyer": Measure(
        "Hoyer of codes",
        "",
        "sparsity of the codes (0 dense, 1 sparse): the ISTA code or the MLP's hidden activations",
        digits=3,
    ),
    "entropy": Measure(
        "attention entropy",
        "of log N",
        "of the rows of all attention maps (0 sharp, 1 uniform); mean over layers",
        digits=3,
    ),
    "selectivity": Measure(
        "class selectivity",
        "",
        "class selectivity index [1803.06959] of the last layer's codes, mean over live atoms",
        digits=3,
    ),
    "probe": Measure(
        "linear probe",
        "%",
        f"on the mean token of the last layer; fitted on at most {PROBE_IMAGES:,} images",
        scale=100,
    ),
    "held": Measure(
        "predictions held",
        "",
        "of the five that the theory makes of a trained CRATE's layers, four of an untrained one's; each judged by the "
        "95 % bootstrap intervals over the images",
        digits=1,
    ),
    "operations": Measure("operations", "MFLOP", "of a forward in training, per image", scale=1e-6, digits=1),
    "parameters": Measure("parameters", "", "all", digits=0),
    "seconds": Measure("training", "s", "wall-clock; comparable only if nothing else ran", digits=0),
}
"""Every measure of a run by its key, in the order of the tables."""
HEADLINES = ("accuracy", "error", "knn", "linear")
"""What arms are compared by first: of classifiers, of autoencoders, of encoders."""
LAYERS: dict[str, Measure] = {
    **{key: OF_LAYERS[key] for key in ("rate", "subspace_rate", "rate_reduction")},
    "compression": replace(MEASURES["compression"], how="change of R^c in the first half of the layer; per image"),
    "nonzero": replace(OF_LAYERS["nonzero_fraction"], scale=100, unit="%", words="non-zero"),
}
"""What is shown layer by layer."""
_MEASURED = ("rate", "subspace_rate_before", "subspace_rate", "rate_reduction", "nonzero_fraction")


def measure_run(directory: Path, num_images: int, encoders: bool = False, untrained: bool = False) -> dict[str, Any]:
    """Everything that a finished run is compared by, as `ArmRun` has it.

    Args:
        num_images: test images for the layer measures, at most.
        encoders: judge the features of the frozen encoder, instead of the metrics of the run's own task.
        untrained: measure its network before the first step.
    """
    saved = open_saved(directory, ("classifier", "features", "autoencoder"))
    recipe, metrics = saved.recipe, saved.metrics
    if recipe is None or metrics is None:
        raise ValueError(f"{directory}: is not a run with a recipe and metrics; train it first")
    initial = saved.untrained()
    saved = replace(saved, model=initial) if untrained else saved
    skip_bad = bool(metrics["data"].get("skipped"))
    labelled = recipe.task == "image-classification"
    splits = load_images(recipe.data, skip_bad, saved.transform.smallest, labelled=labelled)
    batches = saved.batches(evenly(splits.test, num_images), _BATCH)
    found = _layers(saved.model, batches)
    start = {} if untrained else {INITIAL: _layers(initial, batches)}
    kind, config = describe_states(saved.model)[0], saved.model.config
    held = {one.text: one.held for one in claims({TRAINED: found, **start})} if kind == LEARNED else {}
    known = {} if untrained else metrics
    values: dict[str, float | None] = {
        **(_features(saved, splits, known) if encoders else _outcome(saved, splits, metrics)),
        **_rates(found),
        **_readability(saved.model, batches),
        "held": sum(one is True for one in held.values()) if held else None,
        "parameters": metrics["parameters"],
        "seconds": None if untrained else metrics["seconds"],
    }
    shape = (config.num_attention_heads, config.hidden_size, config.head_dim)
    return {"subspaces": kind, "shape": shape, "values": values, "layers": _by_layer(found), "claims": held}


def _outcome(saved: SavedModel, splits: ImageSplits, metrics: dict[str, Any]) -> dict[str, float | None]:
    """What the run itself measured on its test images, a probe, and the operations of a forward."""
    test, recipe = metrics["test"], saved.recipe
    assert recipe is not None
    found = {key: test[name]["mean"] for key, name in (("error", "error_model"), ("psnr", "psnr")) if name in test}
    own = {"accuracy": metrics.get("accuracy"), "error": None, "psnr": None, **found, "loss": metrics["loss"]}
    labelled = len(label_names(splits.train)) > 1
    return {
        **own,
        "probe": _linear_probe(saved, splits.train, splits.test) if labelled else None,
        "operations": forward_operations(saved.model.config, recipe.task),
    }


def _features(saved: SavedModel, splits: ImageSplits, metrics: dict[str, Any]) -> dict[str, float | None]:
    """How good the frozen features are; a run without labels has measured that itself, by the same functions."""
    keys = ("knn", "linear", "linear_patches")
    if "knn" not in metrics:
        known = with_labels(splits)
        if known is None:
            return dict.fromkeys(keys)
        parts = (saved.batches(part) for part in (evenly(known.train, FITTED), known.test))
        metrics = accuracies(judge(saved.model, *parts))
    return {key: metrics[key] for key in keys}


def class_selectivity(activity: Tensor, labels: Tensor) -> Tensor:
    """Class selectivity index of each unit, `(μ_max − μ_rest) / (μ_max + μ_rest)` [1803.06959], `(m)`.

    μ_max is the largest of a unit's mean activities `(n, m)` per class, μ_rest the mean of those of the other classes;
    NaN for a unit that is never active.
    """
    means = torch.stack([activity[labels == label].mean(0) for label in labels.unique()])
    largest = means.amax(0)
    rest = (means.sum(0) - largest) / (len(means) - 1)
    return (largest - rest) / (largest + rest)


def attention_entropy(maps: Tensor) -> Tensor:
    """Entropy of the rows of attention maps `(B, K, N, N)`, over log N; mean over heads and rows, `(B)`."""
    return torch.special.entr(maps.double()).sum(-1).mean((-2, -1)) / math.log(maps.shape[-1])


def recipe_operations(recipe: Recipe) -> float:
    """`forward_operations` of the model that a recipe builds for its data."""
    classes = label_names(load_images(recipe.data).train) if recipe.task == "image-classification" else None
    return forward_operations(build_config(recipe, classes), recipe.task)


def forward_operations(config: PreTrainedConfig, task: str = "image-classification") -> float:
    """Floating-point operations of the model's forward in training, per image, as torch counts them.

    Products of matrices and convolutions count, two operations per multiplication; building the matrix of a complete
    ISTA step counts once per batch of 64.
    """
    height, width = pair(config.image_size)
    with torch.device("meta"):
        auto_class = AUTO_MODELS[task]
        model = auto_class.from_config(config, attn_implementation="eager", trust_remote_code=False).train()
        images = torch.empty(_BATCH, config.num_channels, height, width)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / _BATCH


def _layers(model: PreTrainedModel, batches: DataLoader) -> LayerMeasures:
    """What `LAYERS` and the predictions of the theory are made of."""
    decoded = next(record(model, batches, num_inputs=1)).layers[0].decoded
    return layer_measures(model, batches, EPS, measures=(*_MEASURED, *([CODES] if decoded else [])))


def _by_layer(found: LayerMeasures) -> dict[str, list[float]]:
    """Means over the images of the keys of `LAYERS`."""
    means = {
        **{key: found.mean(key) for key in ("rate", "subspace_rate", "rate_reduction")},
        "compression": found.compression_changes().mean,
        "nonzero": found.mean("nonzero_fraction"),
    }
    return {key: means[key].tolist() for key in LAYERS}


def _rates(found: LayerMeasures) -> dict[str, float]:
    """The same in one number each."""
    layers = _by_layer(found)
    return {
        "compression": math.fsum(layers["compression"]) / found.num_layers,
        "subspace_rate": layers["subspace_rate"][-1],
        "rate_reduction": layers["rate_reduction"][-1],
        "nonzero": math.fsum(layers["nonzero"]) / found.num_layers,
    }


def _readability(model: PreTrainedModel, batches: DataLoader) -> dict[str, float | None]:
    """Sharpness of the maps, sparsity and selectivity of the codes; `None` without maps or codes."""
    means: dict[str, list[Tensor]] = {"hoyer": [], "entropy": []}
    activity = []
    labels = torch.cat([batch["labels"] for batch in batches])
    for states in record(model, batches, attentions=has_maps(model)):
        codes = [step.codes for step in states.steps() if step.codes is not None]
        if states.attentions is not None:
            means["entropy"].append(torch.stack([attention_entropy(maps) for maps in states.attentions]).mean(0))
        if codes:
            means["hoyer"].append(torch.stack([sparsity(one, "hoyer") for one in codes]).mean(0))
            activity.append(codes[-1].clamp_min(0).mean(1))
    found = {name: torch.cat(values).mean().item() if values else None for name, values in means.items()}
    found["selectivity"] = None
    if activity and len(labels.unique()) > 1:
        found["selectivity"] = class_selectivity(torch.cat(activity).cpu(), labels).nanmean().item()
    return found


def _linear_probe(saved: SavedModel, train, test) -> float:
    layer = last_layer(saved.model)
    parts = [features(saved.model, saved.batches(evenly(part, PROBE_IMAGES)), layer, "mean") for part in (train, test)]
    return probe(*parts, method="linear", layer=layer, token="mean", regularisation=1.0).accuracy
