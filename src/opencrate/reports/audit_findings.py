"""The audit in words: every sentence is computed, also when the assumption does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ..analysis.audit.audit import OUTSIDE, AuditReport, LayerAudit, geometry_values
from ..stats.intervals import Interval, bootstrap_mean


def describe(report: AuditReport) -> tuple[str, ...]:
    """Sentences on what was found; all are computed, also when the assumption does not hold."""
    tellable = [layer for layer in report.layers if layer.dimensions["trained"] > _subspace_dim(layer)]
    lines = [_trivial(report, tellable)] if len(tellable) < len(report.layers) else []
    if tellable:
        lines += [_against_gaussian(report, tellable), _against_random(tellable), _fitted(tellable)]
        lines.append(_verdict(report, tellable))
    lines += [describe_outside(report), describe_geometry(report)]
    return tuple(lines + describe_dictionary(report))


def verdicts(layer: LayerAudit) -> dict[str, str]:
    """Whether the mixture on the learned subspaces is "above" or "below" each control, or the interval spans 0.

    Controls: one full Gaussian and random subspaces on the same tokens, these only where every draw of them lies on
    the same side; the gain over the Gaussian on shuffled and on untrained tokens, compared image by image.
    """
    found = {"gaussian": _side(layer.gain("learned")), "random": _against_draws(layer)}
    others = [name for name in layer.fits if name != "trained"]
    return found | {name: _side(_against_condition(layer, name, "learned")) for name in others}


def _side(found: Interval) -> str:
    if float(found.low) > 0:
        return "above"
    return "below" if float(found.high) < 0 else "not told apart"


def _against_draws(layer: LayerAudit) -> str:
    """The side on which the learned subspaces lie of random ones, if it is the same for the mean and every draw."""
    fits = layer.fits["trained"]
    side, draws = _side(layer.gain("learned", "random")), fits["random"].draws
    own = float(fits["learned"].held_out.mean())
    beyond = own > float(draws.max()) if side == "above" else own < float(draws.min())
    return side if beyond else "not told apart"


def _against_condition(layer: LayerAudit, condition: str, model: str) -> Interval:
    """Gain over the full Gaussian on the model's tokens minus that on a control's tokens."""
    own, other = layer.fits["trained"], layer.fits[condition]
    gain = own[model].held_out - own["gaussian"].held_out
    return bootstrap_mean(gain - (other[model].held_out - other["gaussian"].held_out))


def _subspace_dim(layer: LayerAudit) -> int:
    return int(layer.subspaces.ranks.max())


def _numbers(layers: Iterable[LayerAudit]) -> str:
    numbers = [str(layer.layer) for layer in layers]
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {', '.join(numbers[:-1])} and {numbers[-1]}"


def _range(values: Sequence[float] | Tensor, digits: int = 1, signed: bool = False) -> str:
    low, high = float(min(values)), float(max(values))
    sign = "+" if signed else ""
    text = [f"{value:{sign}.{digits}f}" for value in (low, high)]
    return text[0] if text[0] == text[1] else f"{text[0]} to {text[1]}"


def _counts(sides: Sequence[str]) -> str:
    """How many layers lie on which side, in words."""
    above, below = sides.count("above"), sides.count("below")
    return (
        f"above at {above}, below at {below} and not told apart at {len(sides) - above - below} of {len(sides)} layers"
    )


def _trivial(report: AuditReport, tellable: Sequence[LayerAudit]) -> str:
    rest = [layer for layer in report.layers if layer not in tellable]
    dims = _range([layer.dimensions["trained"] for layer in rest], 0)
    p = _subspace_dim(rest[0])
    return (
        f"At {_numbers(rest)} the tokens vary in {dims} dimensions only, no more than the {p} of one subspace: any "
        "subspace holds them all, so the mixtures are not judged there."
    )


def _against_gaussian(report: AuditReport, layers: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("learned") for layer in layers]
    K = len(layers[0].subspaces.ranks)
    return (
        f"{report.name}, {report.token_words}: a mixture of {K} Gaussians on the subspaces ({report.subspace_kind}), "
        "with fitted weights and variances and a common mean, is set against one full Gaussian by the log-likelihood "
        f"of held-out tokens: {_counts([_side(gain) for gain in gains])} (mean differences "
        f"{_range([g.mean for g in gains], 1, True)} nats per token)."
    )


def _against_random(layers: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("learned", "random") for layer in layers]
    draws = len(layers[0].fits["trained"]["random"].draws)
    return (
        f"Against as many random subspaces of the same dimension ({draws} draws; told apart where all lie on one "
        f"side) it is {_counts([_against_draws(layer) for layer in layers])} "
        f"({_range([g.mean for g in gains], 2, True)} nats per token from their mean)."
    )


def _fitted(layers: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("subspaces") for layer in layers]
    text = (
        "With the subspaces fitted to the tokens by EM, same number, dimension and mean, the mixture is "
        f"{_counts([_side(gain) for gain in gains])} against the full Gaussian "
        f"({_range([g.mean for g in gains], 1, True)} nats per token)"
    )
    controls = []
    for condition in layers[0].fits:
        if condition != "trained":
            there = [layer.gain("subspaces", condition=condition).mean for layer in layers]
            more = sum(_side(_against_condition(layer, condition, "subspaces")) == "above" for layer in layers)
            controls.append(
                f"on {'shuffled tokens' if condition == 'shuffled' else 'tokens of the untrained model'} that gain is "
                f"{_range(there, 1, True)}, smaller at {more} of {len(layers)} layers"
            )
    return f"{text}; {'; '.join(controls)}."


def _verdict(report: AuditReport, layers: Sequence[LayerAudit]) -> str:
    holds = [layer for layer in layers if set(verdicts(layer).values()) == {"above"}]
    controls = "the full Gaussian, random subspaces and shuffled tokens"
    if "untrained" in layers[0].fits:
        controls = "the full Gaussian, random subspaces, shuffled tokens and the untrained model"
    where = (
        f"at {_numbers(holds)} of the {len(layers)} judged" if holds else f"at none of the {len(layers)} judged layers"
    )
    missing = "" if "untrained" in layers[0].fits else " The untrained model was not measured."
    return f"The assumed mixture on these subspaces fits better than {controls} {where}.{missing}"


def describe_outside(report: AuditReport) -> str:
    """In words: how much of the tokens' energy lies outside the subspaces, against random ones."""
    own, random = ([float(layer.token(key).mean) for layer in report.layers] for key in OUTSIDE)
    joint = [float(layer.token("outside_joint").mean) for layer in report.layers]
    whole = all(layer.subspaces.joint_rank == layer.subspaces.width for layer in report.layers)
    span = (
        "together the subspaces span the whole space, so nothing can lie outside their joint span"
        if whole
        else f"{_percent(joint)} lies outside the joint span"
    )
    entropy = [float(layer.token("membership_entropy").mean) for layer in report.layers]
    return (
        f"{_percent(own)} of a token's energy lies outside its nearest subspace, {_percent(random)} for random "
        f"subspaces; {span}. The energy is spread over the subspaces with {_range(entropy, 3)} of the largest entropy."
    )


def _percent(values: Sequence[float]) -> str:
    return f"{_range([100 * value for value in values], 1)} %"


def describe_geometry(report: AuditReport) -> str:
    """In words: ranks of the subspaces and angles between them."""
    found = [geometry_values(layer) for layer in report.layers]
    U = report.layers[0].subspaces
    ranks = [one["smallest_rank"][2] for one in found]
    text = (
        f"Every U_k has rank {_range(ranks, 0)} (smallest of a layer), [U_1 … U_K] rank "
        f"{_range([one['joint_rank'][2] for one in found], 0)} of {U.width}"
    )
    if len(U.ranks) == 1:
        return text + "."
    return (
        f"{text}; pairs of subspaces overlap by {_range([one['mean_overlap'][2] for one in found], 3)} on average, "
        f"where random ones have {found[0]['random_overlap'][2]:.3f} and orthogonal ones 0; the smallest "
        f"principal angle is {_range([one['smallest_angle'][2] for one in found], 1)} degrees."
    )


def describe_dictionary(report: AuditReport) -> list[str]:
    """In words: how far the dictionaries are from orthonormal, and whether the ISTA step is stable."""
    found = [layer.dictionary for layer in report.layers if layer.dictionary is not None]
    if not found:
        return ["The model has no dictionary D, so nothing is said about one."]
    steps = [one.step for one in found]
    stable = sum(step < 2 for step in steps)
    name = "D D^T" if found[0].overcomplete else "D^T D"
    return [
        f"η‖D‖² is {_range(steps, 2)}, below the stable limit 2 at {stable} of {len(steps)} layers; {name} is "
        f"{_range([one.gram_error for one in found], 2)} away from {'c I' if found[0].overcomplete else 'I'} in "
        f"relative Frobenius norm ({_range([one.scaled_gram_error for one in found], 2)} from the nearest multiple of "
        f"I), its largest coherence {_range([one.coherence for one in found], 2)} and its condition number "
        f"{_range([one.condition for one in found], 0)}."
    ]
