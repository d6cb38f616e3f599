"""Keep freed CPU memory in the process: training allocates the same large tensors in every step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h
_NEVER = -1
_PAD = 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve large tensors from its heap and never to give that heap back.

    By default a large tensor is a mapping of its own, which the kernel fills with zeros page by page when it is first
    written and takes back when it is freed, in every step again. The results do not change; the peak of the memory
    may, by fragmentation. Returns whether it could be set: only with glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD)))
