"""How well the decoder's layers undo the encoder's: errors against the bound that docs/theory.md derives."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..._values import Amount, Positive, Within
from ...analysis.maths.inverse import inverse_errors
from ...operators import complete_ista_matrix, gamma, orthonormalize
from .base import Amounts, Angle, Experiment, Few, Positives, Row, Settings, Tokens, Track, Width, over_seeds
from .inverse_bound import MatchedLayer, network_bounds, with_layer_norm
from .synthetic import dictionary_with_condition, generator, union_of_subspaces

CASES = {
    "soft": "soft threshold, random orthonormal D",
    "aligned": "ReLU, D in which all codes stay >= 0",
    "relu": "ReLU, random orthonormal D",
    "layernorm": "soft threshold, with LayerNorm (directions only)",
}
SWEEPS = {
    "noise": "noise",
    "angle": "angle (degrees)",
    "condition": "condition number of D",
    "lam": "λ",
    "step_size": "η‖D‖²",
}
_LAYER, NETWORK = "one layer (mean over layers)", "whole network"
_SWEPT = {"soft": tuple(SWEEPS), "aligned": ("noise", "lam", "step_size")}  # aligned codes fix the angle and D


Condition = Annotated[float, Within(1, 1e6)]


@dataclass(frozen=True)
class ReconstructSettings(Settings):
    """Settings of `opencrate experiment reconstruct`.

    Attributes:
        layers: L.
        subspaces, dim, ambient, tokens: K, p, d, N.
        eps: ε of the factor γ = p/(Nε²) of MSSA.
        noise, angle, condition, lam, step_size: swept one at a time; step sizes are η‖D‖².
        base_noise, base_angle, base_condition, base_lam, base_step_size: their base values.
    """

    layers: Few = 6
    subspaces: Few = 4
    dim: Width = 8
    ambient: Width = 64
    tokens: Tokens = 128
    eps: Annotated[float, Within(1e-9, 1e6)] = 0.5
    noise: Amounts = (0.0, 0.1, 0.2, 0.4, 0.8)
    angle: tuple[Angle, ...] = (90.0, 75.0, 60.0, 45.0, 30.0)
    condition: tuple[Condition, ...] = (1.0, 1.5, 2.0, 5.0, 10.0)
    lam: Amounts = (0.0, 0.003, 0.01, 0.03, 0.1)
    step_size: Positives = (0.1, 0.3, 0.5, 0.8, 1.0)
    base_noise: Amount = 0.0
    base_angle: Angle = 90.0
    base_condition: Condition = 1.0
    base_lam: Amount = 0.01
    base_step_size: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for angle in (self.base_angle, *self.angle):
            for noise in (self.base_noise, *self.noise):
                union_of_subspaces(self.subspaces, self.dim, self.ambient, 1, noise, angle)

    @property
    def factor(self) -> float:
        """γ, the factor of MSSA."""
        return gamma(self.tokens, self.dim, self.eps)


SETTINGS = ReconstructSettings


def quick(settings: ReconstructSettings) -> ReconstructSettings:
    """The same in seconds."""
    shorter = {name: (getattr(settings, name)[0], getattr(settings, name)[-2]) for name in SWEEPS}
    return replace(settings, seeds=3, layers=3, tokens=64, **shorter)


def matched_layers(settings: ReconstructSettings, case: str, seed: int, point: dict[str, float]) -> tuple:
    """Tokens `(N, d)` and the layers of one case: U of every layer follows the tokens through the layers before."""
    aligned = case == "aligned"
    sizes = (settings.subspaces, settings.dim, settings.ambient, settings.tokens)
    data = union_of_subspaces(*sizes, point["noise"], point["angle"], seed, aligned)
    bases, layers = data.bases, []
    for number in range(settings.layers):
        if aligned:
            D = _aligned_dictionary(bases, seed) if number == 0 else _permutation(settings.ambient, 97 * seed + number)
        else:
            D = dictionary_with_condition(settings.ambient, point["condition"], 1000 * (seed + 1) + 2 * number)
        eta = point["step_size"] / torch.linalg.matrix_norm(D, 2).square().item()
        signed = case in ("soft", "layernorm")
        layers.append(MatchedLayer(bases, D, eta, point["lam"], signed, settings.factor, settings.dim**-0.5))
        bases = orthonormalize(complete_ista_matrix(D, eta).mT @ bases)
    return data.tokens, layers


def run(settings: ReconstructSettings, track: Track = iter) -> Experiment:
    """Error and bound over the depth at the base point, and of single layers and the network over each sweep."""
    base = {name: getattr(settings, f"base_{name}") for name in SWEEPS}
    values: dict[tuple, list[float]] = defaultdict(list)
    for seed in track(range(settings.seeds)):
        for case in CASES:
            for key, found in _base_values(settings, case, seed, base).items():
                values[key].append(found)
            for sweep in _SWEPT.get(case, ()):
                for value in getattr(settings, sweep):
                    for key, found in _sweep_values(settings, case, seed, base | {sweep: value}).items():
                        values[(sweep, value, case, *key)].append(found)
    rows = [_row(*key, values=found) for key, found in values.items()]
    return Experiment(
        name="reconstruct",
        title="How well do the decoder's layers undo the encoder's?",
        settings=settings,
        rows=tuple(rows),
        facts={"bound": _bound_facts(values)},
    )


def _base_values(settings: ReconstructSettings, case: str, seed: int, base: dict[str, float]) -> dict[tuple, float]:
    """Errors and bounds by depth, `("depth", ℓ, case, of, what)`."""
    Z, layers = matched_layers(settings, case, seed, base)
    plain = case != "layernorm"
    encoders = [layer.encode if plain else with_layer_norm(layer)[0] for layer in layers]
    decoders = [layer.decode if plain else with_layer_norm(layer)[1] for layer in layers]
    errors = inverse_errors(encoders, decoders, Z, directions=not plain)
    found = {}
    bounds = network_bounds(layers, Z) if plain else None
    for number in range(settings.layers):
        where = ("depth", float(number + 1), case)
        found[(*where, "layer ℓ", "error")] = float(errors.per_layer[number])
        found[(*where, "first ℓ layers", "error")] = float(errors.network[number])
        if bounds:
            found[(*where, "layer ℓ", "bound")] = bounds[0][number]
            found[(*where, "first ℓ layers", "bound")] = bounds[1][number]
    return found


def _sweep_values(settings: ReconstructSettings, case: str, seed: int, point: dict[str, float]) -> dict[tuple, float]:
    """Errors and bounds of one layer and of the network at one point, `(of, what)`."""
    Z, layers = matched_layers(settings, case, seed, point)
    whole = [len(layers)]
    errors = inverse_errors([one.encode for one in layers], [one.decode for one in layers], Z, depths=whole)
    bounds = network_bounds(layers, Z, whole)
    return {
        (_LAYER, "error"): float(errors.per_layer.mean()),
        (_LAYER, "bound"): sum(bounds[0]) / len(layers),
        (NETWORK, "error"): float(errors.network[-1]),
        (NETWORK, "bound"): bounds[1][-1],
    }


def _aligned_dictionary(bases: Tensor, seed: int) -> Tensor:
    """Orthonormal D whose first atoms are the bases' columns, so that non-negative coordinates are the codes."""
    joined = bases.movedim(0, 1).flatten(1)
    filling = torch.randn(len(joined), len(joined) - joined.shape[1], generator=generator(seed)).double()
    return orthonormalize(torch.cat((joined, filling), dim=1))


def _permutation(d: int, seed: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)[:, torch.randperm(d, generator=generator(seed))]


def _row(sweep: str, value: float, case: str, of: str, what: str, values: list[float]) -> Row:
    return {"sweep": sweep, "value": value, "case": case, "of": of, "what": what, **over_seeds(values)}


def _bound_facts(values: dict[tuple, list[float]]) -> dict[str, int]:
    """At how many points there is a bound, the error exceeds it on some seed, and it is below 100 % on all."""
    pairs = [(found, values[(*key[:-1], "error")]) for key, found in values.items() if key[-1] == "bound"]
    return {
        "points": len(pairs),
        "broken": sum(any(e > b for b, e in zip(bounds, errors)) for bounds, errors in pairs),
        "useful": sum(max(bounds) < 1 for bounds, _ in pairs),
    }
