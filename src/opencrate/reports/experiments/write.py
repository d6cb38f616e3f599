"""Any experiment in words, as a table and as files."""

from __future__ import annotations

from pathlib import Path

import pandas

from ..._outputs import claim
from ...studies.experiments.base import Experiment, settings_words
from ..html import picture, write_files
from ..tables import frame, to_json
from . import autoencoder, compress, denoise, reconstruct, sparsify

_DPI = 110
_KINDS = {
    "autoencoder": autoencoder,
    "compress": compress,
    "denoise": denoise,
    "reconstruct": reconstruct,
    "sparsify": sparsify,
}


def describe(found: Experiment) -> list[str]:
    """Sentences computed from the numbers."""
    return _KINDS[found.name].describe(found)


def table(found: Experiment) -> pandas.DataFrame:
    """The table that is shown, of texts."""
    return _KINDS[found.name].table(found)


def write_experiment(found: Experiment, folder: Path, command: str = "") -> list[Path]:
    """Write `<name>.csv`, figures as PNG and SVG, and last `<name>.json`, which records the `command`."""
    from ... import __version__

    record = {
        "experiment": found.name,
        "title": found.title,
        "command": command,
        "settings": settings_words(found.settings),
        "opencrate": __version__,
        "summary": describe(found),
        "rows": found.rows,
    }
    files = {
        f"{name}.{kind}": picture(figure, kind, _DPI)
        for name, figure in _KINDS[found.name].figures(found).items()
        for kind in ("png", "svg")
    }
    numbers = [{key: "nan" if value != value else value for key, value in row.items()} for row in found.rows]
    data = {f"{found.name}.csv": frame(numbers), f"{found.name}.json": to_json(record, indent=1)}
    return write_files(claim(folder), files | data)
