"""What masks are asked for, checked before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..segmentation import pca
from ..segmentation.attention_masks import parse_rule
from ..segmentation.refine import METHODS as REFINEMENTS
from .views import FEATURES

METHODS = ("maskcut", "tokencut", "attention", "pca")
TAU = {"maskcut": 0.15, "tokencut": 0.2}
"""The published thresholds."""


@dataclass(frozen=True)
class MaskOptions:
    """How masks are made; see `segment.segment` for what each one means.

    Raises:
        ValueError: a value outside its range.
    """

    method: str = "maskcut"
    layer: int = -1
    features: str = "keys"
    size: int | None = None
    square: bool = False
    stride: int | None = None
    refine: str = "guided"
    num_masks: int = 3
    tau: float | None = None
    rule: str = "mass:0.6"
    head: int | Literal["mean"] | None = None
    threshold: float | None = None
    published: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("features", FEATURES), ("refine", REFINEMENTS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
        if not isinstance(self.num_masks, int) or self.num_masks < 1:
            raise ValueError(f"num_masks={self.num_masks!r}: must be an integer >= 1, such as 3")
        if self.tau is not None and not 0 <= self.tau < 1:
            raise ValueError(f"tau={self.tau!r}: must be at least 0 and below 1, such as 0.15; it is a cosine")
        if self.head not in (None, "mean") and not (isinstance(self.head, int) and self.head >= 1):
            raise ValueError(f"head={self.head!r}: must be a head's number from 1, or 'mean'")
        parse_rule(self.rule)
        if self.threshold is not None:
            pca.check_threshold(self.threshold, self.published)

    @property
    def cosine(self) -> float:
        """τ: the given one, else the method's published one."""
        return TAU.get(self.method, TAU["maskcut"]) if self.tau is None else self.tau

    @property
    def kind(self) -> str:
        """What a mask's label begins with."""
        return {"attention": "head", "pca": "foreground"}.get(self.method, "object")
