"""What the times were measured on, in one line."""

from __future__ import annotations

import torch


def has_half_instructions() -> bool:
    """As the core's: bench also runs on revisions whose core does not ask."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def default_dtypes() -> tuple[str, ...]:
    """float32, and bfloat16 where the device at hand is made for it."""
    fast = torch.cuda.is_available() or has_half_instructions()
    return ("float32", "bfloat16") if fast else ("float32",)


def machine_line(cpu: str) -> str:
    """Processor (its name is given), instruction set, threads, bfloat16, GPU and the version of torch.

    >>> machine_line("AMD EPYC").startswith("AMD EPYC, ")
    True
    """
    units = "AMX" if torch.cpu._is_amx_tile_supported() else "instructions"
    bf16 = f"bf16 {units}" if has_half_instructions() else "no bf16 instructions"
    parts = [cpu, torch.backends.cpu.get_cpu_capability(), bf16, f"threads {torch.get_num_threads()}"]
    if torch.cuda.is_available():
        parts.append(f"GPU {torch.cuda.get_device_name()}")
    return ", ".join([*parts, f"torch {torch.__version__}"])
