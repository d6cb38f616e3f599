"""Is self-supervised training healthy? Numbers with their healthy values beside them, and collapse by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ...analysis.maths.spectra import effective_rank, squared_singular_values
from .inputs import checked_number
from .lejepa import SIGREG_NULL

Kind = Literal["uniform", "one-hot", "constant"]

# Of ln K: above the first share the teacher's entropy counts as uniform, below the second as one-hot, unless the
# entropy of the mean distribution is above the third. LOSS_MARGIN is in nats.
UNIFORM_SHARE, ONE_HOT_SHARE, ONE_HOT_BATCH_SHARE, LOSS_MARGIN = 0.99, 0.01, 0.1, 1e-3
# "constant": hardly anything of the distribution depends on the image, as shares of ln K and of the healthy values.
# Of DINO both shares are asked: three runs on the digits went down to 0.004 to 0.008 ln K, near uniform, with a spread
# of 0.13 and more, and came back by themselves; runs that were made to collapse had 0.0044 ln K and 0.041 at a tenth.
INFORMATION_SHARE, SPREAD_SHARE, COMPRESSION, VARIANCE_TERM = 0.01, 0.05, 0.999, 0.95
RANK_SHARE, HEALTHY_SPREAD, HEALTHY_VARIANCE = 0.1, 0.5, 0.5  # rules of thumb: what readings call healthy
LOGITS_RANK_SHARE = 0.03  # of DINO's logits; runs that learned ended between 0.04 and 0.1
SIGREG_FACTOR = 5.0


@dataclass(frozen=True)
class Reading:
    """One monitored number.

    Attributes:
        name: what it is, in words.
        value: the number.
        healthy: its healthy value or range, in words.
        fine: whether it is in that range.
        advice: what to change where it is not; else empty.
    """

    name: str
    value: float
    healthy: str
    fine: bool
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} (healthy: {self.healthy}){'' if self.fine else ': ' + self.advice}"


@dataclass(frozen=True)
class Collapse:
    """A way of giving the same answer to every image.

    Attributes:
        kind: "uniform": the teacher prefers no prototype; "one-hot": it always chooses the same one; "constant":
            the output does not depend on the image.
        advice: a sentence that says what to change.
    """

    kind: Kind
    advice: str


ADVICE: dict[Kind, str] = {
    "uniform": "the teacher prefers no prototype: lower its temperature, or its momentum for small batches (0.99), or "
    "the learning rate",
    "one-hot": "the teacher chooses the same prototype for every image: lower the centre's momentum so that the centre "
    "keeps up, or raise the teacher's temperature",
    "constant": "the features are the same for every image: raise the weight of the term that spreads them (expansion, "
    "SIGReg, variance), or lower the learning rate",
}

ADVICE_ON_PROTOTYPES = "the teacher hardly sees a difference of images: lower its temperature, or the learning rate"
"""For "constant" with DINO, which has no term that spreads features."""


def collapse(
    parts: Mapping[str, Tensor | float], K: int | None = None, loss: float | None = None, spread: float | None = None
) -> Collapse | None:
    """Whether training has collapsed, and how, by the parts that an objective returned.

    - DINO, with H the `teacher_entropy` and M the `batch_entropy`: "uniform" if H > 0.99 ln K and the loss is within
      1e-3 of ln K; "one-hot" if H < 0.01 ln K and M < 0.1 ln K; "constant" if M - H, the information of the teacher's
      choice about the image, is less than 0.01 ln K, the `spread`, if given, is below 0.05, and it is neither.
    - SimDINO: "constant" if the compression is above 0.999 and the expansion no more than 1.5 times a constant's.
    - VICReg: "constant" if the variance term is above 0.95.
    - Any other, given the `spread`: "constant" if it is below 0.05.

    A network that has not been trained yet can look uniform or constant: ask after the first steps.

    Args:
        parts: by name, as the objective returned them; means over some steps will do.
        K: prototypes of DINO's head, from 2; needed with its parts.
        loss: DINO's loss; its `cross_entropy` by default.
        spread: the value of `spread_reading` times sqrt(p): 1 for isotropic features.

    Returns:
        The collapse, or `None`.

    Raises:
        ValueError: DINO's parts without K.
    """
    value = {name: float(part) for name, part in parts.items()}
    kind: Kind | None = None
    constant = spread is not None and spread < SPREAD_SHARE
    if "teacher_entropy" in value:
        kind = _of_prototypes(value, K, value["cross_entropy"] if loss is None else loss)
        if kind == "constant" and spread is not None and not constant:
            kind = None
    elif "expansion_share" in value:
        still = value["expansion_share"] <= 1.5 * value["constant_share"]
        kind = "constant" if still and value["compression"] > COMPRESSION else None
    elif "variance" in value:
        kind = "constant" if value["variance"] > VARIANCE_TERM else None
    if kind is None and constant and "teacher_entropy" not in value:
        kind = "constant"
    if kind is None:
        return None
    of_prototypes = kind == "constant" and "teacher_entropy" in value
    return Collapse(kind, ADVICE_ON_PROTOTYPES if of_prototypes else ADVICE[kind])


def rank_reading(projections: Tensor, bottleneck: int | None = None) -> Reading:
    """RankMe: the effective rank exp(H(sigma / sum sigma)) of projections `(N, p)`, any floating dtype [2210.02885].

    Between 1 and min(N, p). Healthy here is a tenth of that or more, a rule of thumb. As published, but for the 1e-7
    that it adds to each share.

    Args:
        projections: outputs of a head.
        bottleneck: where these are DINO's logits, the width before its prototypes: their linear map adds no dimension,
            so that the rank is at most min(N, bottleneck). Healthy is 3 % of that or more.
    """
    N, p = _checked_projections(projections)
    value = float(effective_rank(squared_singular_values(projections.detach())))
    most = min(N, p, bottleneck or p)
    least = (LOGITS_RANK_SHARE if bottleneck else RANK_SHARE) * most
    advice = "the features use few dimensions: " + (
        "train longer" if bottleneck else "raise the weight of the term that spreads them, or train longer"
    )
    return _reading("effective rank", value, f"{least:.3g} to {most}", value >= least, advice)


def spread_reading(projections: Tensor) -> Reading:
    """Mean standard deviation over images of the unit-norm projections `(N, p)`, to be compared with 1/sqrt(p).

    1/sqrt(p) is that of isotropic features, 0 that of constant ones [SimSiam, 2011.10566, Sec. 4.1]. Healthy here is
    half of it or more. DINO's logits have less: the centre takes away what all images have in common.
    """
    _, p = _checked_projections(projections)
    unit = F.normalize(projections.detach().double(), dim=-1)
    value, best = float(unit.std(0, correction=0).mean()), 1 / math.sqrt(p)
    healthy = f"near 1/sqrt(p) = {best:.3g}"
    return _reading("spread of features", value, healthy, value >= HEALTHY_SPREAD * best, ADVICE["constant"])


def readings(parts: Mapping[str, Tensor | float], K: int | None = None) -> list[Reading]:
    """The parts of an objective with their healthy values beside them; those without one are left out.

    Args:
        parts, K: as for `collapse`.

    Raises:
        ValueError: DINO's parts without K.
    """
    value = {name: float(part) for name, part in parts.items()}
    found = []
    if "teacher_entropy" in value:
        most = math.log(_checked_prototypes(K))
        low, high = ONE_HOT_SHARE * most, UNIFORM_SHARE * most
        entropy = value["teacher_entropy"]
        advice = ADVICE["uniform" if entropy > high else "one-hot"]
        healthy = f"between 0 and ln K = {most:.3g}, near neither"
        found.append(_reading("teacher entropy", entropy, healthy, low <= entropy <= high, advice))
        batch = value["batch_entropy"]
        healthy = f"near ln K = {most:.3g}"
        found.append(_reading("batch entropy", batch, healthy, batch >= ONE_HOT_BATCH_SHARE * most, ADVICE["one-hot"]))
    if "expansion_share" in value:
        share, constant = value["expansion_share"], value["constant_share"]
        advice = ADVICE["constant"]
        healthy = f"well above {constant:.2g}, which constant features have, up to 1"
        found.append(_reading("expansion / largest", share, healthy, share > 1.5 * constant, advice))
        advice = "views of an image do not agree: lower the weight of the expansion, or train longer"
        compression = value["compression"]
        found.append(_reading("compression", compression, "0.5 to 1", compression >= 0.5, advice))
    if "sigreg" in value:
        found.append(_sigreg_reading(value["sigreg"]))
    if "variance" in value:
        term = value["variance"]
        healthy = "near 0 (0.99 where features are constant)"
        found.append(_reading("variance term", term, healthy, term <= HEALTHY_VARIANCE, ADVICE["constant"]))
    return found


def _sigreg_reading(value: float) -> Reading:
    advice = "the features are far from an isotropic Gaussian: raise the weight of SIGReg, or train longer"
    return _reading(
        "SIGReg", value, f"near {SIGREG_NULL:.3g}, a Gaussian's", value <= SIGREG_FACTOR * SIGREG_NULL, advice
    )


def _of_prototypes(value: Mapping[str, float], K: int | None, loss: float) -> Kind | None:
    most = math.log(_checked_prototypes(K))
    entropy, batch = value["teacher_entropy"], value["batch_entropy"]
    if entropy > UNIFORM_SHARE * most and abs(loss - most) < LOSS_MARGIN:
        return "uniform"
    if entropy < ONE_HOT_SHARE * most and batch < ONE_HOT_BATCH_SHARE * most:
        return "one-hot"
    return "constant" if batch - entropy < INFORMATION_SHARE * most else None


def _reading(name: str, value: float, healthy: str, fine: bool, advice: str) -> Reading:
    return Reading(name, value, healthy, fine, "" if fine else advice)


def _checked_prototypes(K: int | None) -> int:
    if K is None:
        raise ValueError("K is missing: the parts are DINO's, and need the number of prototypes of its head")
    checked_number("K", K, 2, inclusive=True)
    return K


def _checked_projections(projections: Tensor) -> tuple[int, int]:
    if projections.ndim != 2 or len(projections) < 2 or not projections.is_floating_point():
        raise ValueError(
            f"projections must be a floating tensor (N, p) of at least 2 images, got {tuple(projections.shape)} of "
            f"{projections.dtype}"
        )
    if not bool(projections.isfinite().all()):
        raise FloatingPointError("projections has features that are not finite; lower the learning rate")
    return projections.shape[0], projections.shape[1]
