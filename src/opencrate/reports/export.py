"""An exported model in a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..export.targets import TARGETS

if TYPE_CHECKING:
    from ..export.check import Difference, Speed
    from ..export.run import Export


def rows(export: Export) -> list[tuple[str, str]]:
    """What was written and how it was checked, as (name, words)."""
    check, size = export.check, export.size
    texts = "input_ids" in export.inputs
    free = "any batch and length" if texts else "any batch and image size (multiples of the patch)"
    share = export.bytes / export.eager_bytes
    found = [
        ("form", TARGETS[export.to].words),
        ("takes", free if size is None else f"any batch of images of {size[0]}x{size[1]} pixels"),
        ("gives", ", ".join(export.outputs)),
        ("size", f"{export.bytes / 1e6:,.2f} MB, {100 * share:.0f} % of the weights in float32"),
        ("checked on", check.inputs),
        ("largest difference", f"{_difference(check.difference)}; accepted: {export.tolerance:.2g}"),
    ]
    if check.other_size is not None:
        found.append((f"at {check.other}", _difference(check.other_size)))
    if check.agreement is not None:
        found.append(("same decision", f"{100 * check.agreement:.2f} % of {check.decisions:,}"))
    if check.accuracy is not None and check.eager_accuracy is not None:
        found.append(("accuracy", f"{100 * check.accuracy:.2f} % (eager {100 * check.eager_accuracy:.2f} %)"))
    return found


def speed_columns() -> tuple[str, ...]:
    """Of `speed_rows`."""
    return ("inputs at a time", "eager", "exported", "times as fast (quartiles)")


def speed_rows(speeds: Sequence[Speed]) -> list[tuple[str, ...]]:
    """Medians of calls in turns, one row per batch size."""
    return [
        (
            f"{one.batch}",
            _milliseconds(one.eager),
            _milliseconds(one.exported),
            f"{one.ratio[1]:.2f} ({one.ratio[0]:.2f} to {one.ratio[2]:.2f})",
        )
        for one in speeds
    ]


def _difference(difference: Difference) -> str:
    return f"{difference.largest:.2g}, {difference.relative:.2g} of the largest output"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"
