"""What a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..calibration import choices, has_half_instructions, processor


def environment() -> dict[str, Any]:
    """What a run was made with: versions, processor, threads, what was chosen for it; no host or user names."""
    packages = ("torch", "transformers", "accelerate", "datasets")
    return {
        "opencrate": __version__,  # also where it runs from its source, without an installation
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch_build": torch_build(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": "AMX" if _has_amx() else "AVX-512" if has_half_instructions() else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "calibration": choices(),
        "commit": _commit(),
    }


def torch_build() -> str:
    """What torch was built for: CPU, CUDA or ROCm, with its version."""
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"


def _has_amx() -> bool:
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


@cache
def _commit() -> str | None:
    """The commit of this package's own source tree, with `+changes` where it differs; `None` if installed.

    As first read in this process, which goes on with the code of then: a commit made during a run is not the run's.
    """
    source = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
