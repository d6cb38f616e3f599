"""Subspace audit: how far real tokens fit the signal model that CRATE's layers are derived from.

The derivation takes tokens as samples of a mixture of K low-dimensional Gaussians on incoherent subspaces U_k
[2306.01129, Sec. 2.2 and Approximation 4]. Images are split: even-numbered ones are fitted, odd ones held out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...evaluation.inputs import Batch
from ...sparsification import ISTA
from ...stats.intervals import ABOVE, UNDECIDED, Interval, bootstrap_mean
from ..layers.registry import Measure
from ..maths.geometry import DictionaryGeometry, SubspaceGeometry, dictionary_of, subspace_geometry
from .fits import FITS, Fit, Sample, fit_all, random_bases, random_measures, shuffled
from .tokens import TOKEN_KINDS, LayerTokens, TokenKind, collect

CONDITIONS = {
    "trained": "the model's tokens",
    "shuffled": "each coordinate permuted over the tokens",
    "untrained": "tokens of the untrained model",
}
TOKEN_MEASURES: dict[str, Measure] = {
    "outside_nearest": Measure("energy outside the nearest subspace", "fraction of ‖z‖²"),
    "outside_nearest_random": Measure("energy outside the nearest of as many random subspaces", "fraction of ‖z‖²"),
    "outside_joint": Measure("energy outside the joint span of all subspaces", "fraction of ‖z‖²"),
    "membership_entropy": Measure("entropy of ‖U_k^T z‖² over k, divided by log K", "fraction"),
    "membership_entropy_random": Measure("the same for random subspaces", "fraction"),
    "mean_cosine": Measure("mean cosine between tokens of an image", "cosine"),
    "uniformity": Measure("log of the mean of exp(−2 |z_i − z_j|²), unit-norm tokens of an image", "nats"),
    "effective_rank": Measure("effective rank of an image's tokens", "dimensions"),
}
GEOMETRY: dict[str, Measure] = {
    "smallest_rank": Measure("smallest rank of a U_k", "count"),
    "smallest_effective_rank": Measure("smallest effective rank of a U_k", "dimensions"),
    "joint_rank": Measure("rank of [U_1 … U_K]", "count"),
    "orthonormality": Measure("mean over k of ‖U_k^T U_k / c − I‖ / ‖I‖", "ratio"),
    "smallest_angle": Measure("smallest principal angle of two subspaces", "degrees"),
    "mean_angle": Measure("mean principal angle over all pairs", "degrees"),
    "mean_overlap": Measure("mean overlap over all pairs (squared cosine)", "fraction"),
    "largest_overlap": Measure("largest overlap of two subspaces", "fraction"),
    "random_overlap": Measure("overlap expected of random subspaces, p/d", "fraction"),
    "coherence": Measure("largest |cosine| between columns of two bases", "cosine"),
    "dictionary_gram_error": Measure("‖D^T D − I‖ / ‖I‖", "ratio"),
    "dictionary_scaled_gram_error": Measure("the same against c I, any scale c", "ratio"),
    "dictionary_coherence": Measure("largest |cosine| between two atoms", "cosine"),
    "dictionary_condition": Measure("condition number of D", "ratio"),
    "dictionary_step": Measure("η ‖D‖², stable below 2", "ratio"),
}
_TIGHT_FRAME = Measure("‖D D^T / c − I‖ / ‖I‖", "ratio")
"""What `dictionary_gram_error` is of an overcomplete D."""
OUTSIDE = ("outside_nearest", "outside_nearest_random")
"""The token measures that set the model's subspaces beside random ones."""


@dataclass(frozen=True)
class LayerAudit:
    """One layer.

    Attributes:
        layer: from 1.
        subspaces, dictionary: the geometry of U, and of D; `None` for a model without one.
        tokens: values by key of `TOKEN_MEASURES`, one per image, or of random subspaces one per draw.
        fits: by key of `CONDITIONS`, then of `FITS`.
        dimensions: in which the fitted tokens vary, by key of `CONDITIONS`; densities live there.
    """

    layer: int
    subspaces: SubspaceGeometry
    dictionary: DictionaryGeometry | None
    tokens: Mapping[str, Tensor]
    fits: Mapping[str, Mapping[str, Fit]]
    dimensions: Mapping[str, int]

    def gain(self, model: str, against: str = "gaussian", condition: str = "trained") -> Interval:
        """Held-out log-likelihood of one fit above another's, nats per token, with its interval over images."""
        fits = self.fits[condition]
        return bootstrap_mean(fits[model].held_out - fits[against].held_out)

    def gain_over(self, condition: str, model: str) -> Interval:
        """Gain over the full Gaussian on the model's tokens minus that on a control's tokens, image by image."""
        own, other = (
            self.fits[one][model].held_out - self.fits[one]["gaussian"].held_out for one in ("trained", condition)
        )
        return bootstrap_mean(own - other)

    def token(self, measure: str) -> Interval:
        """Mean of a token measure over images (of random subspaces over draws)."""
        return bootstrap_mean(self.tokens[measure])

    def against_draws(self) -> str:
        """The side on which the learned subspaces lie of random ones: the same for their mean and for every draw."""
        fits = self.fits["trained"]
        side, draws = self.gain("learned", "random").sign, fits["random"].draws
        own = float(fits["learned"].held_out.mean())
        assert draws is not None  # the mean over random subspaces keeps them
        beyond = own > float(draws.max()) if side == ABOVE else own < float(draws.min())
        return side if beyond else UNDECIDED

    def verdicts(self) -> dict[str, str]:
        """Whether the mixture on the learned subspaces is "above" or "below" each control, or "undecided".

        Controls: one full Gaussian and random subspaces on the same tokens; the gain over the Gaussian on shuffled and
        on untrained tokens.
        """
        found = {"gaussian": self.gain("learned").sign, "random": self.against_draws()}
        return found | {name: self.gain_over(name, "learned").sign for name in self.fits if name != "trained"}

    def geometry(self) -> dict[str, float]:
        """The numbers of `GEOMETRY`; those of D only where there is one, NaN for what needs several subspaces."""
        U, D = self.subspaces, self.dictionary
        several = len(U.ranks) > 1
        angles, overlaps = U.pairs(U.smallest_angles), U.pairs(U.overlaps)
        values = {
            "smallest_rank": float(U.ranks.min()),
            "smallest_effective_rank": float(U.effective_ranks.min()),
            "joint_rank": float(U.joint_rank),
            "orthonormality": float(U.orthonormality.mean()),
            "smallest_angle": float(angles.min()) if several else math.nan,
            "mean_angle": float(U.pairs(U.mean_angles).mean()) if several else math.nan,
            "mean_overlap": float(overlaps.mean()) if several else math.nan,
            "largest_overlap": float(overlaps.max()) if several else math.nan,
            "random_overlap": float(U.ranks.max()) / U.width if several else math.nan,
            "coherence": U.coherence,
        }
        of_dictionary = ("gram_error", "scaled_gram_error", "coherence", "condition", "step") if D else ()
        return values | {f"dictionary_{name}": getattr(D, name) for name in of_dictionary}


@dataclass(frozen=True)
class Audit:
    """The audit of one model on one data set.

    Attributes:
        name, data: of the model and of the images, for readers.
        subspace_kind: what the subspaces are ("learned U", "value projections per head", ...).
        token_words: what tokens were audited.
        num_images: fitted and held out together; texts where `inputs` says so.
        fit_tokens, held_out_tokens: in the mixture fits, per layer.
        seed: of token choice, shuffling, random subspaces and starts.
        inputs: "images" or "texts".
    """

    layers: tuple[LayerAudit, ...]
    name: str
    data: str
    subspace_kind: str
    token_words: str
    num_images: int
    fit_tokens: int
    held_out_tokens: int
    seed: int = 0
    inputs: str = "images"

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per layer and quantity; `low` and `high` bound the 95 % interval where there is one."""
        return [row for layer in self.layers for row in self._layer_rows(layer)]

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def to_dict(self) -> dict[str, Any]:
        """The rows, and per layer the maps over pairs of subspaces that a row cannot hold; NaN where undefined."""
        names = ("ranks", "effective_ranks", "orthonormality", "scale")
        names += ("block_norms", "overlaps", "smallest_angles", "mean_angles")
        layers = [
            {"layer": layer.layer, **{name: getattr(layer.subspaces, name).tolist() for name in names}}
            for layer in self.layers
        ]
        return {"model": self.name, "data": self.data, "rows": self.to_rows(), "subspaces": layers}

    def _layer_rows(self, layer: LayerAudit) -> Iterator[dict[str, Any]]:
        def row(group: str, measure: str, quantity: str, unit: str, found: float | Interval):
            parts = (found.mean, found.low, found.high) if isinstance(found, Interval) else (found, math.nan, math.nan)
            numbers = [None if math.isnan(part) else float(part) for part in parts]
            words = {"layer": layer.layer, "group": group, "measure": measure, "quantity": quantity}
            about = {"subspaces": self.subspace_kind, "tokens": self.token_words if group != "geometry" else None}
            return {**words, **dict(zip(("value", "low", "high"), numbers)), "unit": unit, **about}

        overcomplete = layer.dictionary is not None and layer.dictionary.overcomplete
        for key, value in layer.geometry().items():
            measure = _TIGHT_FRAME if overcomplete and key == "dictionary_gram_error" else GEOMETRY[key]
            yield row("geometry", key, measure.title, measure.unit, value)
        for key, measure in TOKEN_MEASURES.items():
            yield row("tokens", key, measure.title, measure.unit, layer.token(key))
        for condition, fits in layer.fits.items():
            on = CONDITIONS[condition]
            for name, fit in fits.items():
                key, words = f"{condition}.{name}", f"{FITS[name]}, on {on}"
                held_out = f"held-out log-likelihood: {words}"
                yield row("mixture", f"log_likelihood.{key}", held_out, "nats per token", fit.log_likelihood)
                yield row("mixture", f"bic.{key}", f"BIC: {words}", "nats", fit.bic)
                yield row("mixture", f"parameters.{key}", f"parameters: {words}", "count", fit.num_parameters)
                if name not in ("gaussian", "isotropic"):
                    above = f"held-out gain over one full Gaussian: {words}"
                    yield row("mixture", f"gain.{key}", above, "nats per token", layer.gain(name, condition=condition))
            yield row("mixture", f"dimensions.{condition}", f"dimensions: {on}", "count", layer.dimensions[condition])


def audit(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_images: int = 256,
    layers: Sequence[int] | None = None,
    tokens: TokenKind = "normalised",
    num_tokens: int = 4096,
    untrained: nn.Module | None = None,
    name: str = "",
    data: str = "",
    random_draws: int = 9,
    iterations: int = 30,
    seed: int = 0,
) -> Audit:
    """Audit the subspaces of a model on images, one batch at a time.

    Args:
        model: any model that `states.record` takes.
        batches: a list or DataLoader (read once per model) of what the model takes.
        num_images: use this many, at least 4; half of them are held out.
        layers: numbers from 1; all where not given.
        tokens: "normalised" is LN(Z^ℓ), what U^T is applied to; "raw" is Z^ℓ. A model without a LayerNorm in
            front of its subspaces has its tokens taken as they are.
        num_tokens: tokens in a fit, about (the same number from every image, chosen at random); as many held out.
        untrained: the same architecture before training, as a control; left out where not given.
        name, data: of model and images, for readers.
        random_draws: number of sets of random subspaces that define chance, at least 2.
        iterations: of EM, at most.
        seed: of everything random.

    Raises:
        ValueError: a layer that does not exist; an unknown token kind; fewer images than requested, or so few tokens
            that a covariance is not determined; a state that is not finite (names its layer); `batches` can be read
            only once where it must be read twice.
    """
    _check_choice(tokens, num_images, num_tokens, random_draws)
    if untrained is not None and iter(batches) is batches:
        raise ValueError("batches: can be read only once (a generator); pass a list or a DataLoader")
    options = {"num_images": num_images, "layers": layers, "kind": tokens, "num_tokens": num_tokens, "seed": seed}
    found = collect(model, batches, **options)
    control = collect(untrained, batches, **options) if untrained is not None else None
    dictionaries = [module for module in model.modules() if isinstance(module, ISTA)]
    audits = []
    for number, layer in found.layers.items():
        conditions = {"trained": layer.sample, "shuffled": shuffled(layer.sample, seed + number)}
        if control is not None:
            conditions["untrained"] = control.layers[number].sample
        draws = [random_bases(layer.sample.subspaces, seed + 1000 * draw + number) for draw in range(random_draws)]
        dictionary = dictionaries[number - 1] if len(dictionaries) >= number else None
        audits.append(_audit_layer(number, layer, dictionary, conditions, draws, iterations, seed))
    first = next(iter(found.layers.values())).sample
    return Audit(
        layers=tuple(audits),
        name=name or type(model).__name__,
        data=data,
        subspace_kind=found.subspace_kind,
        token_words=found.token_words,
        num_images=num_images,
        fit_tokens=int((first.images % 2 == 0).sum()),
        held_out_tokens=int((first.images % 2 == 1).sum()),
        seed=seed,
        inputs="texts" if getattr(model, "main_input_name", "") == "input_ids" else "images",
    )


def _audit_layer(
    number: int,
    layer: LayerTokens,
    dictionary: ISTA | None,
    conditions: Mapping[str, Sample],
    draws: Sequence[Tensor],
    iterations: int,
    seed: int,
) -> LayerAudit:
    """One layer's geometry, token measures, and fits to the tokens of every condition; random subspaces `draws`."""
    fits, dimensions = {}, {}
    for condition, sample in conditions.items():
        random = draws if condition == "trained" else []
        fits[condition], dimensions[condition] = fit_all(sample, random, iterations, seed)
    return LayerAudit(
        layer=number,
        subspaces=subspace_geometry(layer.sample.subspaces),
        dictionary=None if dictionary is None else dictionary_of(dictionary),
        tokens=layer.measures | random_measures(layer.sample.tokens, draws),
        fits=fits,
        dimensions=dimensions,
    )


def _check_choice(tokens: str, num_images: int, num_tokens: int, random_draws: int) -> None:
    if tokens not in TOKEN_KINDS:
        raise ValueError(f"tokens={tokens!r}: must be one of {', '.join(TOKEN_KINDS)}")
    if num_images < 4:
        raise ValueError(f"num_images={num_images}: must be at least 4, half of them to fit and half held out")
    for name, value in (("num_tokens", num_tokens), ("random_draws", random_draws)):
        if value < 2:
            raise ValueError(f"{name}={value}: must be at least 2")
