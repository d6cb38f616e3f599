"""How well the layers of trained autoencoders undo one another: errors, R^c on the way, noise, on given images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from ..._values import Positive, Seed, Within, check_fields
from ...analysis.autoencoder import AutoencoderMeasures, measure_autoencoder, require_layered
from ...evaluation.inputs import Batch
from ...modeling_crate_mae import CrateMAEForPreTraining
from ...stats.intervals import bootstrap_mean
from ...stats.words import UNTRAINED
from ...store.inputs import Inputs, image_batches
from ...store.saved import name_of, open_saved, untrained_copy
from .base import Amounts, Experiment, Row

NAME = "autoencoder"
_SIZES = ("num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class AutoencoderSettings:
    """Settings of `opencrate experiment reconstruct --model`.

    Attributes:
        images: measured, at least 2; fewer if there are fewer.
        eps: ε of R^c.
        noise: length of the noise on tokens relative to theirs.
        seed: of untrained copies, masks and noise.
    """

    images: Annotated[int, Within(2, 10**9)] = 64
    eps: Positive = 0.5
    noise: Amounts = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


SETTINGS = AutoencoderSettings


def quick(settings: AutoencoderSettings) -> AutoencoderSettings:
    """The same in seconds."""
    return replace(settings, images=16, noise=settings.noise[::3])


def with_untrained(models: Mapping[str, CrateMAEForPreTraining], seed: int) -> dict[str, CrateMAEForPreTraining]:
    """The models and, for each configuration once, fresh copies; of the first also a tied one if it is not tied."""
    found: dict[str, Any] = dict(models)
    seen: list[dict] = []
    for name, model in models.items():
        if model.config.to_dict() not in seen:
            seen.append(model.config.to_dict())
            found[name + UNTRAINED] = untrained_copy(model, seed)
    name, first = next(iter(models.items()))
    tied = any(model.config.tie_decoder for model in models.values())
    mirrors = all(getattr(first.config, f"decoder_{key}") == getattr(first.config, key) for key in _SIZES)
    if not tied and mirrors:
        found[f"{name}{UNTRAINED}, tied"] = untrained_copy(first, seed, tie_decoder=True)
    return found


def run_saved(
    sources: Sequence[str], settings: AutoencoderSettings, data: str | None = None, untrained: bool = False
) -> Experiment:
    """`run` of saved CRATE autoencoders: folders, or `hf://owner/name`.

    Args:
        data: images, as `ImageData.path`; `None` is what the first model's run held out.
        untrained: add those of `with_untrained`.

    Raises:
        ValueError: as `open_saved`, `require_layered` and `image_batches`.
    """
    opened = [open_saved(source, ("autoencoder",)) for source in sources]
    models: dict[str, CrateMAEForPreTraining] = {}
    for saved in opened:
        model: Any = saved.model
        require_layered(model)
        name = name_of(saved.source)
        models[saved.source if name in models else name] = model
    batches, words = image_batches(opened[0], Inputs(data))
    dataset: Any = batches.dataset
    settings = replace(settings, images=min(settings.images, len(dataset)))
    if untrained:
        models = with_untrained(models, settings.seed)
    return run(models, batches, settings, words)


def run(
    models: Mapping[str, CrateMAEForPreTraining], batches: Iterable[Batch], settings: AutoencoderSettings, data: str
) -> Experiment:
    """Measure every model on the same images, which `data` puts in words; the first is compared with the others."""
    subjects = {
        name: measure_autoencoder(model, batches, settings.eps, settings.noise, settings.images, settings.seed)
        for name, model in models.items()
    }
    return Experiment(
        name=NAME,
        title="How well do the decoder's layers undo the encoder's, in trained autoencoders?",
        settings=settings,
        rows=tuple(row for name, found in subjects.items() for row in _rows(name, found)),
        facts={"data": data, "measures": subjects},
    )


def _rows(name: str, found: AutoencoderMeasures) -> list[Row]:
    """One row per quantity and layer (or noise level; empty for one number per image)."""
    rows = []
    for quantity, values in found.values.items():
        interval = bootstrap_mean(values if values.ndim == 2 else values[:, None])
        places = found.noise_levels if quantity.startswith("noise") else range(1, values.shape[-1] + 1)
        places = found.layers if quantity.startswith(("layer", "network")) else places
        numbers = zip(interval.mean.tolist(), interval.low.tolist(), interval.high.tolist())
        for place, (mean, low, high) in zip(places if values.ndim == 2 else ("",), numbers):
            one = {"model": name, "quantity": quantity, "layer_or_level": place, "mean": mean, "low": low, "high": high}
            rows.append({**one, "images": found.num_images})
    return rows
