"""Subspace audit: how far real tokens fit the signal model that CRATE's layers are derived from.

The derivation takes tokens as samples of a mixture of K low-dimensional Gaussians on incoherent subspaces U_k
[2306.01129, Sec. 2.2 and Approximation 4]. Per layer, this measures the geometry of the learned U and D, where the
tokens lie relative to the subspaces, and how likely held-out tokens are under such mixtures, against models that
assume no subspaces and tokens that have none. Images are split: even-numbered ones are fitted, odd ones held out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..blocks import ISTA
from .geometry import (
    DictionaryGeometry,
    SubspaceGeometry,
    dictionary_geometry,
    effective_rank,
    orthonormal_bases,
    subspace_geometry,
    token_singular_values,
)
from .inputs import Batch
from .mixtures import bic, cluster_shares, fit_gaussian, fit_isotropic, fit_mixture, fit_on_subspaces
from .states import LayerStep, record
from .statistics import Interval, bootstrap_mean

TokenKind = Literal["normalised", "raw"]
TOKEN_KINDS = ("normalised", "raw")
CONDITIONS = {
    "trained": "the model's tokens",
    "shuffled": "each coordinate permuted over the tokens",
    "untrained": "tokens of the untrained model",
}
FITS = {
    "learned": "mixture on the learned subspaces",
    "random": "mixture on random subspaces",
    "subspaces": "mixture with fitted subspaces",
    "clusters": "mixture with fitted subspaces and means",
    "gaussian": "one full Gaussian",
    "isotropic": "one isotropic Gaussian",
}
TOKEN_MEASURES = {
    "outside_nearest": ("energy outside the nearest subspace", "fraction of ‖z‖²"),
    "outside_nearest_random": ("energy outside the nearest of as many random subspaces", "fraction of ‖z‖²"),
    "outside_joint": ("energy outside the joint span of all subspaces", "fraction of ‖z‖²"),
    "membership_entropy": ("entropy of ‖U_k^T z‖² over k, divided by log K", "fraction"),
    "membership_entropy_random": ("the same for random subspaces", "fraction"),
    "mean_cosine": ("mean cosine between tokens of an image", "cosine"),
    "uniformity": ("log of the mean of exp(−2 |z_i − z_j|²), unit-norm tokens of an image", "nats"),
    "effective_rank": ("effective rank of an image's tokens", "dimensions"),
}
_SUPPORT = 1e-9  # directions with less than this times the largest variance hold no information, only rounding


@dataclass(frozen=True)
class Fit:
    """One density fitted to tokens of even-numbered images.

    Attributes:
        held_out: `(n)`, mean log-likelihood per token of each held-out image, nats.
        bic: of the fitted tokens, taken as independent (tokens of one image are not); lower is better.
        num_parameters: that were fitted.
        draws: of a fit that is the mean over random subspaces, the mean log-likelihood of each draw; else `None`.
    """

    held_out: Tensor
    bic: float
    num_parameters: int
    draws: Tensor | None = None

    @property
    def log_likelihood(self) -> Interval:
        """Mean over held-out images with its bootstrap interval, nats per token."""
        return bootstrap_mean(self.held_out)


@dataclass(frozen=True)
class LayerAudit:
    """One layer.

    Attributes:
        layer: from 1.
        subspaces: the geometry of U.
        dictionary: the geometry of D; `None` for a model without one.
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

    def token(self, measure: str) -> Interval:
        """Mean of a token measure over images (of random subspaces over draws)."""
        return bootstrap_mean(self.tokens[measure])


@dataclass(frozen=True)
class AuditReport:
    """The audit of one model on one data set.

    Attributes:
        layers: the audited layers.
        name: of the model, for readers.
        data: of the images, for readers.
        subspace_kind: what the subspaces are ("learned U", "value projections per head", ...).
        token_words: what tokens were audited.
        num_images: fitted and held out together.
        fit_tokens, held_out_tokens: in the mixture fits, per layer.
        seed: of token choice, shuffling, random subspaces and starts.
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

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per layer and quantity; `low` and `high` bound the 95 % interval where there is one."""
        return [row for layer in self.layers for row in self._layer_rows(layer)]

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def summary(self) -> tuple[str, ...]:
        """What was found, in words computed from the numbers."""
        from .audit_report import describe

        return describe(self)

    def save(self, directory: Any, **options: Any) -> Any:
        """Write audit.csv, audit.json, figures and audit.html; see `audit_report.save_audit`."""
        from .audit_report import save_audit

        return save_audit([self], directory, **options)

    def _layer_rows(self, layer: LayerAudit) -> Iterator[dict[str, Any]]:
        def row(group: str, measure: str, quantity: str, unit: str, value: float, found: Interval | None = None):
            low, high = (found.low, found.high) if found else (None, None)
            values = {"value": value, "low": low, "high": high}
            finite = {key: None if v is None or math.isnan(v) else float(v) for key, v in values.items()}
            words = {"layer": layer.layer, "group": group, "measure": measure, "quantity": quantity}
            about = {"subspaces": self.subspace_kind, "tokens": self.token_words if group != "geometry" else None}
            return {**words, **finite, "unit": unit, **about}

        for measure, (quantity, unit, value) in geometry_values(layer).items():
            yield row("geometry", measure, quantity, unit, value)
        for measure in TOKEN_MEASURES:
            found = layer.token(measure)
            yield row("tokens", measure, *TOKEN_MEASURES[measure], found.mean, found)
        for condition, fits in layer.fits.items():
            on = CONDITIONS[condition]
            for name, fit in fits.items():
                key, words = f"{condition}.{name}", f"{FITS[name]}, on {on}"
                found = fit.log_likelihood
                held_out = f"held-out log-likelihood: {words}"
                yield row("mixture", f"log_likelihood.{key}", held_out, "nats per token", found.mean, found)
                yield row("mixture", f"bic.{key}", f"BIC: {words}", "nats", fit.bic)
                yield row("mixture", f"parameters.{key}", f"parameters: {words}", "count", fit.num_parameters)
                if name not in ("gaussian", "isotropic"):
                    gain = layer.gain(name, condition=condition)
                    above = f"held-out gain over one full Gaussian: {words}"
                    yield row("mixture", f"gain.{key}", above, "nats per token", gain.mean, gain)
            yield row("mixture", f"dimensions.{condition}", f"dimensions: {on}", "count", layer.dimensions[condition])


def geometry_values(layer: LayerAudit) -> dict[str, tuple[str, str, float]]:
    """(quantity, unit, value) of U's and D's geometry, one number each."""
    U, D = layer.subspaces, layer.dictionary
    p = float(U.ranks.max())
    degrees, pairs = "degrees", U.pairs
    several = len(U.ranks) > 1
    nan = math.nan
    values = {
        "smallest_rank": ("smallest rank of a U_k", "count", float(U.ranks.min())),
        "smallest_effective_rank": ("smallest effective rank of a U_k", "dimensions", float(U.effective_ranks.min())),
        "joint_rank": ("rank of [U_1 … U_K]", "count", float(U.joint_rank)),
        "orthonormality": ("mean over k of ‖U_k^T U_k / c − I‖ / ‖I‖", "ratio", float(U.orthonormality.mean())),
        "smallest_angle": ("smallest principal angle of two subspaces", degrees, _least(pairs(U.smallest_angles))),
        "mean_angle": (
            "mean principal angle over all pairs",
            degrees,
            float(pairs(U.mean_angles).mean()) if several else nan,
        ),
        "mean_overlap": (
            "mean overlap over all pairs (squared cosine)",
            "fraction",
            float(pairs(U.overlaps).mean()) if several else nan,
        ),
        "largest_overlap": ("largest overlap of two subspaces", "fraction", -_least(-pairs(U.overlaps))),
        "random_overlap": ("overlap expected of random subspaces, p/d", "fraction", p / U.width if several else nan),
        "coherence": ("largest |cosine| between columns of two bases", "cosine", U.coherence),
    }
    if D is None:
        return values
    gram = "‖D D^T / c − I‖ / ‖I‖" if D.overcomplete else "‖D^T D − I‖ / ‖I‖"
    return values | {
        "dictionary_gram_error": (gram, "ratio", D.gram_error),
        "dictionary_scaled_gram_error": ("the same against c I, any scale c", "ratio", D.scaled_gram_error),
        "dictionary_coherence": ("largest |cosine| between two atoms", "cosine", D.coherence),
        "dictionary_condition": ("condition number of D", "ratio", D.condition),
        "dictionary_step": ("η ‖D‖², stable below 2", "ratio", D.step),
    }


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
) -> AuditReport:
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
        random_draws: how many sets of random subspaces stand for chance, at least 2.
        iterations: of EM, at most.
        seed: of everything random.

    Raises:
        ValueError: a layer that does not exist; an unknown token kind; fewer images than asked for, or so few tokens
            that a covariance is not determined; a state that is not finite (names its layer); `batches` can be read
            only once where it must be read twice.
    """
    _check_choice(tokens, num_images, num_tokens, random_draws)
    if untrained is not None and iter(batches) is batches:
        raise ValueError("batches: can be read only once (a generator); pass a list or a DataLoader")
    options = {"num_images": num_images, "layers": layers, "kind": tokens, "num_tokens": num_tokens, "seed": seed}
    found = _collect(model, batches, **options)
    control = _collect(untrained, batches, **options) if untrained is not None else None
    dictionaries = [module for module in model.modules() if isinstance(module, ISTA)]
    audits = []
    for number, layer in found.layers.items():
        conditions = {"trained": layer.sample, "shuffled": _shuffled(layer.sample, seed + number)}
        if control is not None:
            conditions["untrained"] = control.layers[number].sample
        draws = [_random_bases(layer.sample.subspaces, seed + 1000 * draw + number) for draw in range(random_draws)]
        fits, dimensions = {}, {}
        for condition, sample in conditions.items():
            random = draws if condition == "trained" else []
            fits[condition], dimensions[condition] = _fit_all(sample, random, iterations, seed)
        dictionary = dictionaries[number - 1] if len(dictionaries) >= number else None
        audits.append(
            LayerAudit(
                layer=number,
                subspaces=subspace_geometry(layer.sample.subspaces),
                dictionary=None if dictionary is None else _dictionary(dictionary),
                tokens=layer.measures | _random_measures(layer.sample.tokens, draws),
                fits=fits,
                dimensions=dimensions,
            )
        )
    first = next(iter(found.layers.values())).sample
    return AuditReport(
        layers=tuple(audits),
        name=name or type(model).__name__,
        data=data,
        subspace_kind=found.subspace_kind,
        token_words=found.token_words,
        num_images=num_images,
        fit_tokens=int((first.images % 2 == 0).sum()),
        held_out_tokens=int((first.images % 2 == 1).sum()),
        seed=seed,
    )


@dataclass(frozen=True)
class _Sample:
    """Tokens of one layer: `tokens (n, d)`, of image number `images (n)`, and the layer's `subspaces (K, d, p)`."""

    tokens: Tensor
    images: Tensor
    subspaces: Tensor


@dataclass(frozen=True)
class _Layer:
    sample: _Sample
    measures: dict[str, Tensor]


@dataclass(frozen=True)
class _Collected:
    layers: dict[int, _Layer]
    subspace_kind: str
    token_words: str


def _check_choice(tokens: str, num_images: int, num_tokens: int, random_draws: int) -> None:
    if tokens not in TOKEN_KINDS:
        raise ValueError(f"tokens={tokens!r}: must be one of {', '.join(TOKEN_KINDS)}")
    if num_images < 4:
        raise ValueError(f"num_images={num_images}: must be at least 4, half of them to fit and half held out")
    if num_tokens < 2:
        raise ValueError(f"num_tokens={num_tokens}: must be at least 2")
    if random_draws < 2:
        raise ValueError(f"random_draws={random_draws}: must be at least 2")


def _dictionary(module: ISTA) -> DictionaryGeometry:
    return dictionary_geometry(module.effective_dictionary(), module.config.ista_step_size)


def _collect(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_images: int,
    layers: Sequence[int] | None,
    kind: TokenKind,
    num_tokens: int,
    seed: int,
) -> _Collected:
    """Run the model once; keep token measures of every image and a sample of its tokens, per layer."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[int, list[Tensor]] = {}
    measures: dict[int, list[dict[str, Tensor]]] = {}
    bases: dict[int, tuple[Tensor, Tensor]] = {}
    images: list[Tensor] = []
    first_image, normalised, subspace_kind = 0, True, ""
    with _watched_norms(model) as norms:
        for states in record(model, batches, num_images=num_images, layers=layers):
            steps = list(states.steps())
            subspace_kind = states.subspace_kind
            mask = _token_mask(steps[0])
            positions = _positions(mask, -(-num_tokens // (num_images // 2)), generator)
            images.append(torch.repeat_interleave(torch.arange(len(mask)), positions.sum(1)) + first_image)
            for step in steps:
                number = step.layer
                seen = _matching_output(norms, step.before) if kind == "normalised" else step.before
                normalised = normalised and seen is not None
                tokens = (step.before if seen is None else seen).float().cpu()
                if not torch.isfinite(tokens).all():
                    raise ValueError(
                        f"layer {number}: its tokens hold NaN or infinite values; the model's weights or its input "
                        "are damaged, or training diverged"
                    )
                if number not in bases:
                    bases[number] = _bases(step.subspaces)
                kept.setdefault(number, []).append(tokens[positions])
                measures.setdefault(number, []).append(_token_measures(tokens, mask, bases[number][1]))
            norms.clear()
            first_image += len(mask)
    all_images = torch.cat(images)
    return _Collected(
        layers={
            number: _Layer(
                sample=_Sample(torch.cat(kept[number]), all_images, bases[number][0]),
                measures={key: torch.cat([part[key] for part in measures[number]]) for key in measures[number][0]},
            )
            for number in kept
        },
        subspace_kind=subspace_kind,
        token_words="Z^ℓ, no LayerNorm"
        if kind == "raw"
        else ("LN(Z^ℓ)" if normalised else "Z^ℓ as it is, no LayerNorm stands before the subspaces"),
    )


@contextmanager
def _watched_norms(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that every LayerNorm of the model appends its (input, output) to."""
    calls: list[tuple[Tensor, Tensor]] = []
    norms = [module for module in model.modules() if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))]
    hooks = [norm.register_forward_hook(lambda _, given, out: calls.append((given[0], out))) for norm in norms]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _matching_output(calls: Sequence[tuple[Tensor, Tensor]], tokens: Tensor) -> Tensor | None:
    """The output of the LayerNorm that was given exactly these tokens."""
    for given, out in calls:
        if given is tokens or (given.shape == tokens.shape and torch.equal(given, tokens)):
            return out
    return None


def _token_mask(step: LayerStep) -> Tensor:
    """Which tokens are real, bool `(B, N)`."""
    return torch.ones(step.before.shape[:2], dtype=torch.bool) if step.mask is None else step.mask.bool().cpu()


def _positions(mask: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """Choose up to `per_image` real tokens of every image at random, bool `(B, N)`."""
    order = torch.rand(mask.shape, generator=generator).masked_fill(~mask, 2.0).argsort(1).argsort(1)
    return mask & (order < per_image)


def _bases(subspaces: Tensor) -> tuple[Tensor, Tensor]:
    """U as it is, and its orthonormal bases."""
    subspaces = subspaces.detach().float().cpu()
    return subspaces, orthonormal_bases(subspaces).float()


def _random_bases(subspaces: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return orthonormal_bases(torch.randn(subspaces.shape, generator=generator, dtype=torch.float64))


def _random_measures(tokens: Tensor, draws: Sequence[Tensor]) -> dict[str, Tensor]:
    """Where sampled tokens `(n, d)` lie relative to random subspaces, float64 `(draws)` each."""
    energy = tokens.square().sum(-1).clamp_min(torch.finfo(tokens.dtype).tiny)
    shares = [_energy_shares(tokens[None], draw.float(), energy[None]) for draw in draws]
    return {
        "outside_nearest_random": torch.stack([(1 - one.amax(-1)).double().mean() for one in shares]),
        "membership_entropy_random": torch.stack([_entropy(one).double().mean() for one in shares]),
    }


def _token_measures(tokens: Tensor, mask: Tensor, learned: Tensor) -> dict[str, Tensor]:
    """Where the tokens `(B, N, d)` of each image lie, float64 `(B)` each."""
    energy = tokens.square().sum(-1).clamp_min(torch.finfo(tokens.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return (values.double() * mask).sum(1) / mask.sum(1)

    shares = _energy_shares(tokens, learned, energy)
    joint = orthonormal_bases(learned.movedim(0, 1).flatten(1)[None])[0].float()
    inside = (tokens @ joint).square().sum(-1) / energy
    spans_all = int((joint.square().sum(0) > 0.5).sum()) == tokens.shape[-1]
    unit = (tokens / energy.sqrt()[..., None] * mask[..., None]).double()
    return {
        "outside_nearest": mean((1 - shares.amax(-1)).clamp_min(0)),
        "outside_joint": mean(torch.zeros_like(inside) if spans_all else (1 - inside).clamp_min(0)),
        "membership_entropy": mean(_entropy(shares)),
        **_dispersion(unit, mask.sum(1)),
        "effective_rank": effective_rank(token_singular_values(tokens * mask[..., None])),
    }


def _energy_shares(tokens: Tensor, bases: Tensor, energy: Tensor) -> Tensor:
    """‖Q_k^T z‖² / ‖z‖², `(B, N, K)`."""
    return torch.einsum("bnd,kdp->bnkp", tokens, bases).square().sum(-1) / energy[..., None]


def _entropy(shares: Tensor) -> Tensor:
    """Entropy of the shares over the last axis, as a fraction of its largest value; NaN for one subspace."""
    if shares.shape[-1] == 1:
        return torch.full_like(shares[..., 0], math.nan)
    total = shares.sum(-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return torch.special.entr(shares / total).sum(-1) / math.log(shares.shape[-1])


def _dispersion(unit: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Mean cosine and uniformity [Wang & Isola 2020] of unit-norm tokens `(B, N, d)`, masked ones zero."""
    cosines = unit @ unit.mT
    pairs = (count * (count - 1)).double()
    mean_cosine = (cosines.sum((1, 2)) - count) / pairs
    closeness = (-4 * (1 - cosines)).exp()
    real = unit.square().sum(-1) > 0.5
    both = real[:, :, None] & real[:, None, :]
    uniformity = (((closeness * both).sum((1, 2)) - count) / pairs).log()
    return {"mean_cosine": mean_cosine, "uniformity": uniformity}


def _shuffled(sample: _Sample, seed: int) -> _Sample:
    """Every coordinate permuted over the tokens of a half on its own: the same marginals, no joint structure."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sample.tokens.clone()
    for rest in (0, 1):
        rows = (sample.images % 2 == rest).nonzero()[:, 0]
        order = torch.rand(len(rows), tokens.shape[1], generator=generator).argsort(0)
        tokens[rows] = tokens[rows].gather(0, order)
    return _Sample(tokens, sample.images, sample.subspaces)


def _fit_all(sample: _Sample, draws: Sequence[Tensor], iterations: int, seed: int) -> tuple[dict[str, Fit], int]:
    """Every density of one condition, and in how many dimensions."""
    fitted = sample.images % 2 == 0
    X, held_out = sample.tokens[fitted].double(), sample.tokens[~fitted].double()
    width = X.shape[1]
    if len(X) < 2 * width:
        raise ValueError(
            f"{len(X)} tokens to fit in {width} dimensions: a covariance needs at least {2 * width}; give more images "
            "(num_images) or take more tokens of each (num_tokens)"
        )
    centre, support = _support(X)
    X, held_out = (X - centre) @ support, (held_out - centre) @ support
    dimensions = support.shape[1]
    bases = orthonormal_bases(support.mT @ sample.subspaces.double())
    rank = min(bases.shape[2], dimensions - 1)
    images = sample.images[~fitted]
    options = {"iterations": iterations, "tolerance": 1e-3}

    learned = fit_on_subspaces(X, bases, **options).mixture
    models: dict[str, Any] = {"learned": learned}
    others = [orthonormal_bases(support.mT @ draw) for draw in draws]
    random = [fit_on_subspaces(X, one, **options).mixture for one in others]
    centred = X.new_zeros(dimensions)
    shares = learned.responsibilities(X)
    models["subspaces"] = fit_mixture(X, rank, shares, centred, seed=seed, **options).mixture
    models["clusters"] = fit_mixture(X, rank, cluster_shares(X, len(bases), seed), seed=seed, **options).mixture
    models["gaussian"] = fit_gaussian(X)
    models["isotropic"] = fit_isotropic(X)
    fits = {name: _fit(model, X, held_out, images) for name, model in models.items()}
    if random:
        fits["random"] = _mean_fit([_fit(model, X, held_out, images) for model in random])
    return {name: fits[name] for name in FITS if name in fits}, dimensions


def _fit(model: Any, X: Tensor, held_out: Tensor, images: Tensor) -> Fit:
    return Fit(
        held_out=_per_image(model.log_prob(held_out), images),
        bic=bic(model.log_prob(X), model.num_parameters),
        num_parameters=model.num_parameters,
    )


def _mean_fit(draws: Sequence[Fit]) -> Fit:
    """Several fits of one kind as one: the mean of each image's log-likelihood, and every draw's mean."""
    held_out = torch.stack([fit.held_out for fit in draws])
    return Fit(
        held_out=held_out.mean(0),
        bic=sum(fit.bic for fit in draws) / len(draws),
        num_parameters=draws[0].num_parameters,
        draws=held_out.mean(1),
    )


def _support(X: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(d)` and an orthonormal basis `(d, r)` of the directions in which the tokens vary.

    LN(Z) has no variance along one direction, and dead coordinates have none: a Gaussian would be infinitely likely
    there, so such directions are left out, for all densities alike.
    """
    mean = X.mean(0)
    centred = X - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    kept = values > _SUPPORT * values[-1]
    if not values[-1] > 0 or int(kept.sum()) < 2:
        raise ValueError("the tokens do not vary: all images give the same states, so there is nothing to fit")
    return mean, vectors[:, kept]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Mean of the values of each image, in the order of the images."""
    _, index = images.unique(return_inverse=True)
    sums = torch.zeros(int(index.max()) + 1, dtype=values.dtype).index_add(0, index, values)
    return sums / torch.bincount(index)


def _least(values: Tensor) -> float:
    return float(values.min()) if len(values) else math.nan
