"""The audit in words: every sentence is computed, also when the assumption does not hold."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.audit.audit import OUTSIDE, Audit, LayerAudit
from ..stats.intervals import ABOVE, BELOW
from ..stats.words import layers, plural, span

_CONTROLS = {"shuffled": "shuffled tokens", "untrained": "tokens of the untrained model"}


def describe(audit: Audit) -> tuple[str, ...]:
    """Sentences on what was found; all are computed, also when the assumption does not hold."""
    judged = judged_layers(audit)
    lines = (
        [_trivial([layer for layer in audit.layers if layer not in judged])] if len(judged) < len(audit.layers) else []
    )
    if judged:
        lines += [_against_gaussian(audit, judged), _against_random(judged), _fitted(judged), _verdict(judged)]
    return (*lines, describe_outside(audit), describe_geometry(audit), describe_dictionary(audit))


def judged_layers(audit: Audit) -> list[LayerAudit]:
    """The layers at which tokens vary in more dimensions than one subspace has, so that a mixture can fail."""
    return [layer for layer in audit.layers if layer.dimensions["trained"] > _subspace_dim(layer)]


def holding(judged: Sequence[LayerAudit]) -> list[LayerAudit]:
    """The layers at which the assumed mixture fits better than every control."""
    return [layer for layer in judged if set(layer.verdicts().values()) == {ABOVE}]


def _subspace_dim(layer: LayerAudit) -> int:
    return int(layer.subspaces.ranks.max())


def _counts(signs: Sequence[str]) -> str:
    """How many layers lie on which side, in words."""
    above, below = signs.count(ABOVE), signs.count(BELOW)
    rest = len(signs) - above - below
    return f"above at {above}, below at {below} and undecided at {rest} of {plural(len(signs), 'layer')}"


def _numbers(found: Sequence[LayerAudit]) -> str:
    return layers([layer.layer for layer in found])


def _trivial(rest: Sequence[LayerAudit]) -> str:
    return (
        f"At {_numbers(rest)} the tokens vary in {span([layer.dimensions['trained'] for layer in rest], 0)} dimensions "
        f"only, no more than the {_subspace_dim(rest[0])} of one subspace: any subspace holds them all, so the "
        "mixtures are not judged there."
    )


def _against_gaussian(audit: Audit, judged: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("learned") for layer in judged]
    return (
        f"{audit.name}, {audit.token_words}: a mixture of {len(judged[0].subspaces.ranks)} Gaussians on the subspaces "
        f"({audit.subspace_kind}), with fitted weights and variances and a common mean, is set against one full "
        f"Gaussian by the log-likelihood of held-out tokens: {_counts([gain.sign for gain in gains])} (mean "
        f"differences {span([gain.mean for gain in gains], 1, signed=True)} nats per token)."
    )


def _against_random(judged: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("learned", "random").mean for layer in judged]
    draws = judged[0].fits["trained"]["random"].draws
    assert draws is not None  # random subspaces are what is drawn
    return (
        f"Against as many random subspaces of the same dimension ({len(draws)} draws; decided where all lie on one "
        f"side) it is {_counts([layer.against_draws() for layer in judged])} ({span(gains, 2, signed=True)} nats per "
        "token from their mean)."
    )


def _fitted(judged: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("subspaces") for layer in judged]
    text = (
        "With the subspaces fitted to the tokens by EM, same number, dimension and mean, the mixture is "
        f"{_counts([gain.sign for gain in gains])} against the full Gaussian "
        f"({span([gain.mean for gain in gains], 1, signed=True)} nats per token)"
    )
    for condition, words in _CONTROLS.items():
        if condition in judged[0].fits:
            there = [layer.gain("subspaces", condition=condition).mean for layer in judged]
            smaller = sum(layer.gain_over(condition, "subspaces").sign == ABOVE for layer in judged)
            text += f"; on {words} that gain is {span(there, 1, signed=True)}, smaller at {smaller} of {len(judged)}"
    return f"{text}."


def _verdict(judged: Sequence[LayerAudit]) -> str:
    holds = holding(judged)
    measured = "untrained" in judged[0].fits
    controls = f"random subspaces{',' if measured else ' and'} shuffled tokens"
    controls += " and the untrained model" if measured else ""
    where = f"at {_numbers(holds)} of the {len(judged)} judged" if holds else f"at none of the {len(judged)} judged"
    missing = "" if measured else " The untrained model was not measured."
    return f"The assumed mixture on these subspaces fits better than the full Gaussian, {controls} {where}.{missing}"


def describe_outside(audit: Audit) -> str:
    """In words: how much of the tokens' energy lies outside the subspaces, against random ones."""

    def means(key: str) -> list[float]:
        return [float(layer.token(key).mean) for layer in audit.layers]

    own, random, joint = (span(means(key), 1, percent=True) for key in (*OUTSIDE, "outside_joint"))
    whole = all(layer.subspaces.joint_rank == layer.subspaces.width for layer in audit.layers)
    outside = (
        "together the subspaces span the whole space, so nothing can lie outside their joint span"
        if whole
        else f"{joint} lies outside the joint span"
    )
    return (
        f"{own} of a token's energy lies outside its nearest subspace, {random} for random subspaces; {outside}. The "
        f"energy is spread over the subspaces with {span(means('membership_entropy'), 3)} of the largest entropy."
    )


def describe_geometry(audit: Audit) -> str:
    """In words: ranks of the subspaces and angles between them."""
    found = [layer.geometry() for layer in audit.layers]

    def spread(key: str, digits: int = 0) -> str:
        return span([one[key] for one in found], digits)

    U = audit.layers[0].subspaces
    text = (
        f"Every U_k has rank {spread('smallest_rank')} (smallest of a layer), [U_1 … U_K] rank {spread('joint_rank')} "
        f"of {U.width}"
    )
    if len(U.ranks) == 1:
        return text + "."
    return (
        f"{text}; pairs of subspaces overlap by {spread('mean_overlap', 3)} on average, where random ones have "
        f"{found[0]['random_overlap']:.3f} and orthogonal ones 0; the smallest principal angle is "
        f"{spread('smallest_angle', 1)} degrees."
    )


def describe_dictionary(audit: Audit) -> str:
    """In words: how far the dictionaries are from orthonormal, and whether the ISTA step is stable."""
    found = [layer.dictionary for layer in audit.layers if layer.dictionary is not None]
    if not found:
        return "The model has no dictionary D, so nothing is said about one."

    def spread(field: str, digits: int = 2) -> str:
        return span([getattr(one, field) for one in found], digits)

    gram, target = ("D D^T", "c I") if found[0].overcomplete else ("D^T D", "I")
    return (
        f"η‖D‖² is {spread('step')}, below the stable limit 2 at {sum(one.step < 2 for one in found)} of {len(found)} "
        f"layers; {gram} is {spread('gram_error')} away from {target} in relative Frobenius norm "
        f"({spread('scaled_gram_error')} from the nearest multiple of I), its largest coherence {spread('coherence')} "
        f"and its condition number {spread('condition', 0)}."
    )
