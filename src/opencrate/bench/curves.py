"""Time and memory over the length of the input, or over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .result import BenchResult
from .run import cases_of, measure_memory, settings_of, thread_count, time_cases


def curve(
    *,
    tokens: Sequence[int] = (),
    depth: Sequence[int] = (),
    size: str | None = None,
    batch: int = 1,
    config: dict[str, Any] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    against: Sequence[str] = ("vit",),
    memory: bool = True,
    repeats: int = 3,
    threads: int | None = None,
    smoke: bool = False,
) -> BenchResult:
    """Time and peak memory of CRATE against ViT at several lengths, or several depths.

    Args:
        tokens: lengths, the class token included: one more than a square number (197 is 14 x 14 patches).
        depth: numbers of layers; one of `tokens` and `depth` is given.
        size, batch, config, dtypes, modes, against, repeats, threads, smoke: as in `run.bench`.
        memory: measure the peak memory too, each in a process of its own.

    Returns:
        lines whose `point` has `tokens` or `depth`.

    Raises:
        ValueError: neither or both of `tokens` and `depth`; a length that is no square and one.
    """
    if bool(tokens) == bool(depth):
        raise ValueError("give one of `tokens` and `depth`: lengths such as 197 577 1025, or layers such as 12 24 36")
    config, lines = config or {}, []
    cases = cases_of("image", dtypes, modes, against)
    base = settings_of("image", size, batch, config, smoke)
    points = [{"tokens": one} for one in tokens] or [{"depth": one} for one in depth]
    changes = [_change(point, base) for point in points]  # all are checked before the first is timed
    with thread_count(threads):
        for point, change in zip(points, changes):
            settings = settings_of("image", size, batch, {**config, **change}, smoke)
            found = time_cases(settings, cases, 2 if smoke else repeats, point)
            if memory:
                measure_memory(settings, found)
            lines += found
        return BenchResult("curve", {**base.as_dict(), "repeats": repeats, "points": points}, lines)


def _change(point: dict[str, int], settings: Any) -> dict[str, Any]:
    """The fields of the configuration at a point."""
    if "depth" in point:
        return {"num_hidden_layers": point["depth"]}
    from .models import config_of

    side, patch = math.isqrt(max(0, point["tokens"] - 1)), config_of(settings).patch_size
    if side == 0 or side**2 + 1 != point["tokens"]:
        raise ValueError(
            f"tokens={point['tokens']}: must be one more than a square number, for the class token and the patches of "
            f"a square image; {side**2 + 1 if side else 2} and {(side + 1) ** 2 + 1} are"
        )
    return {"image_size": side * patch if isinstance(patch, int) else [side * one for one in patch]}
