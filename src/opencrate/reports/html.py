"""Reports: words, figures and tables on one self-contained HTML page, with the data files beside it.

Nothing here knows what the numbers mean. Texts may use `^x`, `^{words}` for a raised part, and `‖_0` or `V_k` for one
lowered character; everything else is shown as it is.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import matplotlib.figure
import pandas
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from .._outputs import claim, write_whole
from .tables import as_bytes

DPI = 200
PREDICTED, MEASURED, HOW = "Theory predicts", "Measured", "How"
"""Heads of the notes under a figure."""


@dataclass(frozen=True)
class Figure:
    """A figure and the notes under it.

    Attributes:
        name: file name without ending, unique in the report.
        alt: what there is to see, for readers who cannot.
        notes: text by its head, such as `MEASURED`; empty texts are left out.
        folded: further figures, shown when asked for.
    """

    name: str
    title: str
    figure: matplotlib.figure.Figure
    alt: str
    notes: Mapping[str, str] = field(default_factory=dict)
    folded: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. Cells are texts or numbers; NaN and `None` are shown as a dash."""

    title: str
    frame: pandas.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A part of a report with a heading.

    Attributes:
        sentences: what was found, in words.
        items: figures, tables, and HTML of a page's own, in this order; neighbouring figures share a grid.
        folded: shown when asked for.
    """

    title: str
    sentences: tuple[str, ...] = ()
    items: tuple[Figure | Table | Markup, ...] = ()
    folded: bool = False

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures among the items."""
        return tuple(item for item in self.items if isinstance(item, Figure))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables among the items."""
        return tuple(item for item in self.items if isinstance(item, Table))

    @property
    def blocks(self) -> tuple[tuple[Any, ...], ...]:
        """The items, neighbouring figures together."""
        blocks: list[list[Any]] = []
        for item in self.items:
            if blocks and isinstance(item, Figure) and isinstance(blocks[-1][0], Figure):
                blocks[-1].append(item)
            else:
                blocks.append([item])
        return tuple(map(tuple, blocks))


@dataclass(frozen=True)
class Report:
    """A page, in the order it is shown.

    Attributes:
        subtitle: what was run on what, one line.
        summary: three sentences for a reader who does not know the theory.
        record: (name, text) of what was run, short texts.
        listings: (name, text) of what was run, long texts; shown folded, spacing kept.
        files: written beside the page and named in it, by file name: a frame (CSV), a mapping or list (JSON), a text.
        page: file name of the page.
        template: that shows it, an extension of `base.html.j2`.
        values: what that template needs besides.
    """

    title: str
    subtitle: str
    summary: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    record: tuple[tuple[str, str], ...] = ()
    listings: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, pandas.DataFrame | Mapping | list | str] = field(default_factory=dict)
    page: str = "report.html"
    template: str = "base.html.j2"
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures of all parts, without those folded under another."""
        return tuple(figure for part in self.parts for figure in part.figures)


def write(report: Report, folder: str | Path, overwrite: bool = False) -> Path:
    """Write the page, its figures as `figures/<name>.png` (those not folded also as `.svg`), and the data files.

    Every file is whole or not there. The page comes last, needs no other file, and its path is given back.

    Raises:
        ValueError: there is one already and it is not to be replaced.
    """
    folder = Path(folder).expanduser()
    path = folder / report.page
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists; choose another folder, or pass overwrite=True")
    pictures = {one.name: picture(one.figure, "png") for one in _with_folded(report.figures)}
    page = render(report, pictures)
    claim(folder)
    if pictures:
        (folder / "figures").mkdir(exist_ok=True)
    write_files(folder / "figures", {f"{name}.png": png for name, png in pictures.items()})
    for one in report.figures:
        one.figure.set_layout_engine("none")  # the layout is done and would take most of the time again
        write_files(folder / "figures", {f"{one.name}.svg": picture(one.figure, "svg")})
    write_files(folder, {**report.files, report.page: page})
    return path


def write_files(folder: Path, files: Mapping[str, Any]) -> list[Path]:
    """Write each file (see `tables.as_bytes`) under a temporary name and rename it; returns the paths."""
    for name, value in files.items():
        write_whole(folder / name, as_bytes(name, value))
    return [folder / name for name in files]


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page's HTML; `pictures`: PNG by the names of its figures, folded ones included."""
    shown = _with_folded(report.figures)
    sizes = {one.name: [round(side * DPI) for side in one.figure.get_size_inches()] for one in shown}
    images = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()}
    template = environment().get_template(report.template)
    return template.render(report=report, images=images, sizes=sizes, **report.values)


def fragment(parts: Sequence[Part]) -> str:
    """The HTML of parts alone, pictures included, for a page that brings its own head and `fragment_style`."""
    report = Report("", "", parts=tuple(parts), template="fragment.html.j2")
    return render(report, {one.name: picture(one.figure) for one in _with_folded(report.figures)})


def fragment_style() -> str:
    """The CSS of what `fragment` gives. The page sets the colours ink, soft, paper, card, line and accent."""
    return environment().get_template("fragment.css.j2").render()


def environment() -> jinja2.Environment:
    """The templates' environment: texts are escaped, unknown names are errors."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("opencrate.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(formula=formula, cell=cell, anchor=anchor)
    found.tests.update(
        used_in=used_in, figure=lambda item: isinstance(item, Figure), table=lambda item: isinstance(item, Table)
    )
    return found


def picture(figure: matplotlib.figure.Figure, kind: str = "png", dpi: int = DPI) -> bytes:
    """The figure as PNG or SVG, without a date or version in it: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.set(dpi=dpi, facecolor="white")
    with matplotlib.rc_context({"svg.hashsalt": "opencrate"}):  # each canvas draws once; `savefig` draws twice
        if kind == "png":
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        else:
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def formula(text: str) -> Markup:
    """Escaped text with `^x`, `^{words}` raised, `‖_0` lowered, and no line break before a per cent sign."""
    safe = str(escape(text)).replace(" %", "&nbsp;%")
    safe = re.sub(r"\^\{([^}]*)\}|\^(\S)", lambda match: f"<sup>{match[1] or match[2]}</sup>", safe)
    return Markup(re.sub(r"(?<=[A-Z‖])_([0-9a-zA-Z])(?![0-9a-z_])", r"<sub>\1</sub>", safe))


def cell(value: Any) -> Markup:
    """A table's cell: text as a formula, numbers with at most four digits that count, a dash for what is not there."""
    if value is None or value != value:
        return Markup("–")
    if isinstance(value, float):
        value = f"{value:.4g}"
    return formula(value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else str(value))


def anchor(title: str) -> str:
    """A heading's address in its page."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def link(words: str, title: str) -> Markup:
    """Words that lead to the part of a page with this title."""
    return Markup('<a href="#{}">{}</a>').format(anchor(title), formula(words))


def used_in(term: tuple[str, str, str], page: str) -> bool:
    """Whether a page's text uses a term: (name, pattern, meaning)."""
    return re.search(term[1], re.sub(r"<[^>]*>", "", page).replace("&nbsp;", " ")) is not None


def _with_folded(figures: tuple[Figure, ...]) -> Iterator[Figure]:
    """The figures, each followed by those folded under it."""
    for one in figures:
        yield one
        yield from _with_folded(one.folded)
