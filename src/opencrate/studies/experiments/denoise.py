"""What attention takes out of noisy tokens of a known mixture, against the best any denoiser can; and sampling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ..._values import Positive, Within
from ...analysis.maths import denoising as maths
from ...analysis.maths.denoising import mssa_denoiser
from ...analysis.maths.mixtures import LowRankMixture
from ...operators import coding_rate_gradient, mssa
from ...stats.intervals import BELOW, paired_difference, seed_interval
from .base import Angle, Experiment, Positives, Row, Settings, Steps, Track, Width, over_seeds
from .synthetic import generator, mixture_of_subspaces

FORMS = {
    "noisy": "noisy tokens as they are",
    "exact": "posterior mean (exact)",
    "linear": "best linear map",
    "one_token": "one-token attention over subspaces",
    "mssa": "MSSA, scale 1/σ²",
    "mssa_lengths": "MSSA, scale 1/σ², with key lengths",
    "mssa_fitted": "a X + b MSSA(X), scale 1/σ², fitted",
    "published_fitted": "a X + b MSSA(LN X), scale 1/√p, fitted",
    "gradient_fitted": "a X + b ∇R^c(X), fitted",
}
"""Denoisers by key; `fitted` ones choose a and b at every noise level by least squares on other tokens."""

SAMPLERS = ("exact", "linear", "one_token", "mssa", "mssa_lengths", "published_fitted")

MEASURES = {
    "in_subspace": "energy in the nearest subspace",
    "energy": "energy, relative to the mixture's",
    "chi_square": "χ² of the subspaces' counts, per degree of freedom",
    "distance": "sliced Wasserstein distance, relative to that of true draws",
}
_EPS = 0.5  # of ∇R^c


@dataclass(frozen=True)
class DenoiseSettings(Settings):
    """Settings of `opencrate experiment denoise`.

    Attributes:
        subspaces, dim, ambient, tokens: K, p, d, N; E‖z‖² = 1.
        angle: between every two subspaces, in degrees.
        noise: (E‖σw‖²)^½ relative to the tokens', σ√d.
        steps: of the sampler, from noise `largest` to `smallest` and then to 0.
        largest, smallest: as `noise`.
    """

    subspaces: Annotated[int, Within(2, 256)] = 4
    dim: Width = 4
    ambient: Width = 32
    tokens: Annotated[int, Within(2, 16_384)] = 512
    angle: Angle = 90.0
    noise: Positives = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    steps: Steps = 30
    largest: Positive = 10.0
    smallest: Positive = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        maths.noise_schedule(self.largest, self.smallest, self.steps)
        mixture_of_subspaces(self.subspaces, self.dim, self.ambient, self.angle)


SETTINGS = DenoiseSettings


def quick(settings: DenoiseSettings) -> DenoiseSettings:
    """The same in seconds."""
    return replace(settings, seeds=3, tokens=128, noise=settings.noise[1::3], steps=10)


@dataclass(frozen=True)
class Draw:
    """One seed's mixture, the tokens `(N, d)` to denoise and others to fit weights on, each with its noise."""

    mixture: LowRankMixture
    clean: Tensor
    noise: Tensor
    fit_clean: Tensor
    fit_noise: Tensor

    def denoisers(self) -> dict[str, maths.Denoiser]:
        """Every form of `FORMS`."""
        mixture, U = self.mixture, self.mixture.bases
        return {
            "noisy": lambda X, sigma: X,
            "exact": lambda X, sigma: maths.posterior_mean(mixture, X, sigma),
            "linear": lambda X, sigma: maths.linear_denoiser(mixture, X, sigma),
            "one_token": lambda X, sigma: maths.one_token_attention(X, U, sigma),
            "mssa": lambda X, sigma: mssa_denoiser(X, U, sigma),
            "mssa_lengths": lambda X, sigma: mssa_denoiser(X, U, sigma, key_lengths=True),
            "mssa_fitted": self._fitted(lambda X, sigma: mssa_denoiser(X, U, sigma)),
            "published_fitted": self._fitted(lambda X, sigma: mssa(layer_norm(X, X.shape[-1:]), U)),
            "gradient_fitted": self._fitted(lambda X, sigma: coding_rate_gradient(X, U, _EPS)),
        }

    def _fitted(self, update: Callable[[Tensor, float], Tensor]) -> maths.Denoiser:
        """a X + b update(X), the weights least squares on the other tokens at the same noise level."""

        def denoise(X: Tensor, sigma: float) -> Tensor:
            noisy = self.fit_clean + sigma * self.fit_noise
            columns = torch.stack((noisy.flatten(), update(noisy, sigma).flatten()), dim=1)
            a, b = torch.linalg.lstsq(columns, self.fit_clean.flatten()[:, None]).solution.flatten()
            return a * X + b * update(X, sigma)

        return denoise


def draw(settings: DenoiseSettings, seed: int) -> Draw:
    """The mixture and tokens of one seed."""
    mixture = mixture_of_subspaces(settings.subspaces, settings.dim, settings.ambient, settings.angle, seed)
    source = generator(seed + 1_000_003)
    clean, other = (mixture.sample(settings.tokens, source)[0] for _ in range(2))
    noise, other_noise = (torch.randn(clean.shape, generator=source, dtype=torch.float64) for _ in range(2))
    return Draw(mixture, clean, noise, other, other_noise)


def run(settings: DenoiseSettings, track: Track = iter) -> Experiment:
    """Error of every form at every noise level, and what every sampler makes of noise."""
    errors: dict[tuple, list[float]] = defaultdict(list)
    samples: dict[tuple, list[float]] = defaultdict(list)
    unit = settings.ambient**-0.5
    for seed in track(range(settings.seeds)):
        tokens = draw(settings, seed)
        denoisers = tokens.denoisers()
        for level in settings.noise:
            noisy = tokens.clean + level * unit * tokens.noise
            for form, denoise in denoisers.items():
                wrong = (denoise(noisy, level * unit) - tokens.clean).square().sum() / tokens.clean.square().sum()
                errors[(form, level)].append(float(wrong))
        sigmas = maths.noise_schedule(settings.largest * unit, settings.smallest * unit, settings.steps)
        for form in SAMPLERS:
            made = maths.sample(denoisers[form], sigmas[0] * tokens.noise, sigmas)
            for name, value in asdict(maths.sample_quality(made, tokens.mixture, generator(seed))).items():
                samples[(form, name)].append(value)
    rows = [_row("denoising", form, "relative error", level, found) for (form, level), found in errors.items()]
    rows += [_row("sampling", form, name, "", found) for (form, name), found in samples.items()]
    return Experiment(
        name="denoise",
        title="What does attention take out of noisy tokens, against the best any denoiser can?",
        settings=settings,
        rows=tuple(rows),
        facts={
            "better": {
                (form, other): sum(
                    paired_difference(errors[form, level], errors[other, level], seed_interval).sign == BELOW
                    for level in settings.noise
                )
                for form in FORMS
                for other in ("noisy", "linear")
            },
            "refused": {form: sum(value < 0.05 for value in samples[form, "p_value"]) for form in SAMPLERS},
        },
    )


def _row(what: str, form: str, measure: str, level: float | str, values: list[float]) -> Row:
    return {"what": what, "form": form, "measure": measure, "noise": level, **over_seeds(values)}
