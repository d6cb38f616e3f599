"""The page as a Space of the Hugging Face Hub: a folder to push there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from .._files import HUB_PREFIX, folder_of, require_file, shown
from .._outputs import check_results, claim, write_text
from .._weights import is_packaged_name
from ..store.kinds import kind_of
from ..store.saved import name_of
from .server import MAX_UPLOAD
from .uploads import MODEL_SUFFIXES

FILES = ("app.py", "requirements.txt", "README.md", ".gitattributes", "models")
GRADIO = "6.31.0"
"""The version that the page is tested with, where none is installed."""
_APP = '''"""OpenCRATE's page, as a Space."""

from pathlib import Path

import opencrate
from opencrate.app import open_shelf, serve

opencrate.register_auto_classes()
MODELS = {models}
HERE = Path(__file__).parent

sources = [one if one.startswith("hf://") else str(HERE / one) for one in MODELS]
serve(open_shelf(sources), host=None, max_upload={max_upload})
'''
_REQUIREMENTS = """# OpenCRATE is not on PyPI yet. Until then build its wheel in a copy of the repository, put it
# beside this file, and name it in place of the next line: ./opencrate-{version}-py3-none-any.whl[app]
opencrate[app]=={version}
"""
_README = """---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
suggested_hardware: cpu-basic
license: mit
---

# {title}

What the layers of white-box transformers (CRATE, [2311.13110](https://arxiv.org/abs/2311.13110)) make of a picture or a
text. Written by `opencrate app`; the models: {names}.
"""
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write_space(
    folder: str | Path,
    models: Sequence[str],
    *,
    title: str = "OpenCRATE",
    max_upload: int = MAX_UPLOAD,
    overwrite: bool = False,
) -> list[Path]:
    """Write app.py, requirements.txt and README.md of a Space, with the models' own files in models/.

    Args:
        folder: made if it does not exist.
        models: run directories, saved folders or `opencrate/name`, which are copied; or `hf://owner/name`, which the
            Space downloads.
        title: of the Space.
        max_upload: MB of an upload.
        overwrite: replace a Space that was written before.

    Returns:
        The files written, app.py last.

    Raises:
        ValueError: no models, two of one name, one that cannot be read, or a folder that holds something else.
    """
    if not models:
        raise ValueError("models: none; a Space needs at least one")
    sources = {_place(one): one for one in models}
    if len(sources) < len(models):
        raise ValueError(f"models: two of one name among {', '.join(models)}; rename a folder")
    for one in models:
        kind_of(one)
    inputs = [one for one in models if not one.startswith(HUB_PREFIX) and not is_packaged_name(one)]
    check_results(folder, FILES, FILES[0], inputs, overwrite=overwrite)
    place = claim(folder)
    shutil.rmtree(place / "models", ignore_errors=True)
    written = [path for name, one in sources.items() if name != one for path in _copy(one, place / name)]
    names = ", ".join(_title(name) for name in sources)
    texts = {
        ".gitattributes": _ATTRIBUTES,
        "README.md": _README.format(title=title, gradio=_gradio_version(), names=names),
        "requirements.txt": _REQUIREMENTS.format(version=__version__),
        "app.py": _APP.format(models=repr(list(sources)).replace("'", '"'), max_upload=max_upload),
    }
    for name, text in texts.items():
        write_text(place / name, text)
    return [*written, *(place / name for name in texts)]


def _place(source: str) -> str:
    """Where a model lies in the Space: a folder below models/, or on the Hub."""
    if source.startswith(HUB_PREFIX):
        return source
    name = source.partition("/")[2] if is_packaged_name(source) else name_of(source)
    return f"models/{re.sub(r'[^A-Za-z0-9._-]', '_', name).lstrip('.') or 'model'}"


def _title(place: str) -> str:
    return place.removeprefix("models/").removeprefix(HUB_PREFIX)


def _copy(source: str, place: Path) -> list[Path]:
    """The files that reading the model needs, copied; weights are safetensors."""
    folder = folder_of(source)
    files = sorted(path for path in folder.iterdir() if path.name.endswith(MODEL_SUFFIXES) and path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{shown(source)}: holds no safetensors; save the model with `save_pretrained`")
    place.mkdir(parents=True)
    return [Path(shutil.copyfile(require_file(path), place / path.name)) for path in files]


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return GRADIO
