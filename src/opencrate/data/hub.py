"""Data sets of the Hugging Face Hub, and what all tables share: checks before and quiet while they are read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi

from .._files import HUB_PREFIX, shown
from .images.files import start_of, what_it_is
from .parts import splits_by_part


def load_hub(reference: str, example: str, streaming: bool = False) -> tuple[dict[str, Any], str]:
    """The parts of `hf://owner/name[/config]`, and the revision of one that is streamed; this uses the network.

    Raises:
        ValueError: not of that form (the message gives `example`), not to be had, or splits of other names only.
    """
    name = reference.removeprefix(HUB_PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"'{reference}' is not of the form hf://owner/name, for example hf://{example}")
    owner, title, *config = name.split("/")
    repository = f"{owner}/{title}"
    try:
        with no_progress_bars():
            loaded = datasets.load_dataset(  # pyright: ignore[reportCallIssue]
                repository,
                *config,  # pyright: ignore[reportArgumentType]  # one name or none
                streaming=streaming,  # pyright: ignore[reportArgumentType]
            )
        revision = (streaming and HfApi().dataset_info(repository).sha) or ""
    except (OSError, ValueError, DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{reference}: cannot be had from the Hugging Face Hub ({reason}); check the name, the network and "
            "`hf auth login`, or download it and give the local folder"
        ) from error
    return splits_by_part(loaded if isinstance(loaded, Mapping) else {"all": loaded}, reference), revision


def check_readable(file: Path) -> int:
    """The rows of a parquet file; `ValueError` if it is truncated, damaged or something else."""
    found = what_it_is(start_of(file))
    try:
        if found != "a parquet file":
            raise pyarrow.ArrowInvalid(f"it is {found}")
        with pyarrow.parquet.ParquetFile(file) as opened:
            rows, groups = opened.metadata.num_rows, range(opened.metadata.num_row_groups)
            size = sum(opened.metadata.row_group(group).total_byte_size for group in groups)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{shown(file)}: not a readable parquet file, truncated or damaged ({shown(error)}); replace it"
        ) from error
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise ValueError(f"{shown(file)}: unpacks to {size:,} bytes, but the disk has {free:,}; free some space")
    return rows


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`, which are restored afterwards."""
    enabled = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
