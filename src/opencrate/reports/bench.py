"""A benchmark as a table, as sentences, and as the figure of its curve."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .._outputs import check_free, check_output, claim, write_text
from ..bench.result import BenchLine, BenchResult
from ..bench.settings import NAMES, OURS
from .figures import COLOURS, MARKERS, WIDTH, finish, panels
from .html import picture, write_files
from .tables import frame, to_json

CURVE_FILES = ("curve.csv", "curve.json", "curve.png")
_DPI = 150
_MIB = 2**20


def table(found: BenchResult) -> tuple[list[str], list[tuple[str, ...]]]:
    """Heads and rows: one for each form, mode and data type."""
    points = list(found.lines[0].point) if found.lines else []
    ratio = f"times {found.reference}"
    heads = [*points, "form", "mode", "type", "median ms", f"{found.unit}/s", f"{ratio} [min, max]"]
    return [*heads, "% of GEMM", "memory MiB", "parameters"], [_row(line, points) for line in found.lines]


def _row(line: BenchLine, points: list[str]) -> tuple[str, ...]:
    name, record = NAMES.get(line.form, line.form), line.record()
    if line.compiled:
        name += f", compiled ({line.compiled})"
    if line.failure:
        name += f": {line.failure}"
    head = (*(str(line.point[key]) for key in points), name, line.mode, _short(line.dtype))
    if not line.seconds:
        return (*head, *["–"] * 6)
    ratio = f"{record['ratio']:.2f} [{record['ratio_min']:.2f}, {record['ratio_max']:.2f}]"
    share = "–" if line.gemm_share is None else f"{100 * line.gemm_share:.0f}"
    memory = "–" if line.memory is None else _number(line.memory / _MIB)
    rates = (_number(1e3 * line.median), _number(line.samples / line.median), ratio, share, memory)
    return (*head, *rates, f"{line.parameters / 1e6:.4g} M")


def describe(found: BenchResult) -> list[str]:
    """Sentences that the table does not say: the GEMM rate, and GPT-2 against ours at equal parameters."""
    words = [found.machine]
    rates: dict[str, list[float]] = {}
    for line in found.lines:
        if line.gemm_flops_per_second is not None:
            rates.setdefault(line.dtype, []).append(line.gemm_flops_per_second)
    words += [f"GEMM rate, {name}: {statistics.median(all_of) / 1e9:.1f} GFLOP/s" for name, all_of in rates.items()]
    equal = [line for line in found.lines if line.form == "equal" and line.seconds]
    for line in equal:
        words += [
            _equal(line, other)
            for other in found.lines
            if other.form == "gpt2" and (other.dtype, other.mode) == (line.dtype, line.mode) and other.seconds
        ]
    return words


def _equal(line: BenchLine, other: BenchLine) -> str:
    pairs = [theirs / mine for theirs, mine in zip(other.seconds, line.seconds)]
    return (
        f"{line.dtype}: GPT-2 ({other.parameters:,} parameters) takes {statistics.median(pairs):.2f} "
        f"[{min(pairs):.2f}, {max(pairs):.2f}] times as long as ours at equal parameters ({line.parameters:,})"
    )


def check_file(path: str | Path, overwrite: bool = False) -> None:
    """Refuse, with a `ValueError`, a file that cannot be written, or is there and is not to be replaced."""
    path = Path(path).expanduser()
    check_output(path)
    check_free(path.parent, (path.name,), overwrite)


def write_result(found: BenchResult, path: str | Path, overwrite: bool = False) -> Path:
    """Write all of a result as JSON; errors as of `check_file`."""
    check_file(path, overwrite)
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(found.as_json(), indent=1) + "\n")
    return path


def write_curve(found: BenchResult, folder: str | Path) -> list[Path]:
    """Write curve.csv (without the raw times), curve.json and curve.png."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found.records()]
    data: dict[str, Any] = {"curve.csv": frame(rows), "curve.json": to_json(found.as_json(), indent=1)}
    return write_files(claim(folder), {"curve.png": picture(curve_figure(found), "png", _DPI)} | data)


def curve_figure(found: BenchResult) -> Figure:
    """Milliseconds (above) and MiB (below, where measured) over tokens or layers, a column for each mode."""
    modes = list(dict.fromkeys(line.mode for line in found.lines))
    (key,) = found.lines[0].point
    rows = 1 + any(line.memory is not None for line in found.lines)
    figure, drawn = panels(rows, len(modes), width=WIDTH * len(modes), height=0.6 + 2.5 * rows)
    quantities = (("time, ms", lambda line: 1e3 * line.median), ("memory, MiB", _memory))
    for row in range(rows):
        for column, mode in enumerate(modes):
            axes = drawn[row * len(modes) + column]
            _panel(axes, [line for line in found.lines if line.mode == mode], key, quantities[row][1])
            axes.set_ylabel(quantities[row][0], fontsize=9)
            if row == 0:
                axes.set_title(mode, fontsize=9)
    words = {"tokens": "tokens of an image", "depth": "layers"}
    finish(drawn, xlabel=words[key], whole=False, together=True, columns=2, note=found.machine)
    return figure


def _memory(line: BenchLine) -> float:
    return float("nan") if line.memory is None else line.memory / _MIB


def _panel(axes: Any, lines: list[BenchLine], key: str, value: Any) -> None:
    """One curve for each form and data type, on logarithmic axes, with the points that were measured as ticks."""
    forms = list(dict.fromkeys(line.form for line in lines))
    curves = dict.fromkeys((line.form, line.dtype) for line in lines)
    for form, dtype in curves:
        own = [line for line in lines if (line.form, line.dtype) == (form, dtype)]
        index = forms.index(form)
        style, inside = ("-", COLOURS[index]) if dtype == "float32" else ("--", "white")
        label = f"{'CRATE' if form == OURS else NAMES[form]}, {_short(dtype)}"
        look = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 1.4}
        look["markerfacecolor"] = inside
        axes.plot([line.point[key] for line in own], [value(line) for line in own], style, label=label, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({line.point[key] for line in lines})
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16"}[dtype]


def _number(value: float) -> str:
    """Three digits, and no fewer than the whole ones."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
