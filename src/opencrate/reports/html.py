"""One self-contained HTML file out of words, figures and tables; it knows nothing of what they mean.

Texts may use `^x`, `^{words}` for a raised part, and `‖_0` or `V_k` for one lowered character; everything else is
shown as it is.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from .._files import encoded
from .._outputs import write_whole

DPI = 200


@dataclass(frozen=True)
class ReportFigure:
    """One figure with what theory predicts, what was measured and how; empty texts are left out.

    Attributes:
        name: file name without ending, unique in the report.
        alt: what there is to see, for readers who cannot.
        variants: (name, title, figure) of further figures, shown folded.
    """

    name: str
    title: str
    figure: Figure
    alt: str
    theory: str = ""
    measured: str = ""
    how: str = ""
    variants: tuple[tuple[str, str, Figure], ...] = ()


@dataclass(frozen=True)
class ReportTable:
    """A table of texts; the first column holds the row names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class ReportSection:
    """A part of a report with a heading of its own, after the first figures.

    Attributes:
        title: the heading.
        sentences: what was found, in words; shown under the heading and, where `summary` is not given, on top.
        summary: the sentences that also stand on top of the report.
        files: as `ReportContent.files`.
    """

    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[ReportFigure, ...] = ()
    tables: tuple[ReportTable, ...] = ()
    summary: tuple[str, ...] | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_top(self) -> tuple[str, ...]:
        """The sentences for the top of the report."""
        return self.sentences if self.summary is None else self.summary


@dataclass(frozen=True)
class ReportContent:
    """All of a report, in the order it is shown.

    Attributes:
        subtitle: what was run on what, one line.
        summary: sentences with numbers.
        comparison: the table right under the summary.
        sections: further parts, each with its own heading.
        record: (name, text) of what was run, short texts.
        listings: (name, text) of what was run, long texts; shown folded, spacing kept.
        files: file name -> text, written beside the report and named in it.
    """

    title: str
    subtitle: str
    summary: tuple[str, ...]
    comparison: ReportTable | None = None
    figures: tuple[ReportFigure, ...] = ()
    sections: tuple[ReportSection, ...] = ()
    tables: tuple[ReportTable, ...] = ()
    record: tuple[tuple[str, str], ...] = ()
    listings: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def write_report(path: str | os.PathLike, content: ReportContent) -> Path:
    """Write the HTML file, its figures as `figures/<name>.png` (those not folded also as `.svg`), and data files.

    Every file is written under a temporary name and renamed; the HTML comes last and needs no other.

    Args:
        path: of the HTML file; its folder must exist.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"path={path}: the folder {path.parent} does not exist; create it first")
    pictures = {name: picture(figure, "png") for name, figure in _all_figures(content)}
    (path.parent / "figures").mkdir(exist_ok=True)
    for name, png in pictures.items():
        write_whole(path.parent / "figures" / f"{name}.png", png)
    for figure in _shown_figures(content):
        figure.figure.set_layout_engine("none")  # the layout is done and would take most of the time again
        write_whole(path.parent / "figures" / f"{figure.name}.svg", picture(figure.figure, "svg"))
    for name, text in content.files.items():
        write_whole(path.parent / name, encoded(text))
    write_whole(path, encoded(_render(content, pictures)))
    return path


def _shown_figures(content: ReportContent) -> list[ReportFigure]:
    """The figures that are not folded, those of the sections included."""
    return [*content.figures, *(figure for section in content.sections for figure in section.figures)]


def _all_figures(content: ReportContent) -> list[tuple[str, Figure]]:
    """(file name, figure) of every figure, variants included."""
    figures = _shown_figures(content)
    shown = [(figure.name, figure.figure) for figure in figures]
    return shown + [(name, extra) for figure in figures for name, _, extra in figure.variants]


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as PNG or SVG, without a date or version in it: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "opencrate"}):
        figure.savefig(buffer, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _render(content: ReportContent, pictures: Mapping[str, bytes]) -> str:
    """The HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opencrate.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["formula"] = formula
    images = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()}
    sizes = {name: [round(i * DPI) for i in f.get_size_inches()] for name, f in _all_figures(content)}
    return environment.get_template("report.html.j2").render(content=content, images=images, sizes=sizes)


def formula(text: str) -> Markup:
    """Escaped text with `^x`, `^{words}` raised, `‖_0` lowered, and no line break before a per cent sign."""
    safe = str(escape(text)).replace(" %", "&nbsp;%")
    safe = re.sub(r"\^\{([^}]*)\}|\^(\S)", lambda match: f"<sup>{match[1] or match[2]}</sup>", safe)
    return Markup(re.sub(r"(?<=[A-Z‖])_([0-9a-z])(?![0-9a-z_])", r"<sub>\1</sub>", safe))
