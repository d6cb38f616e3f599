"""Threads that compute with one thread each, beside torch's own way of many threads for one operation."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


@functools.cache
def single_threaded(count: int) -> ThreadPoolExecutor:
    """`count` threads, kept, whose torch operations use one thread each.

    Alternating with operations that use all threads costs much: those wait by spinning. Hand over long pieces.
    """
    barrier = threading.Barrier(count)
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "opencrate", _compute_alone, (barrier,))
    for started in [pool.submit(barrier.wait) for _ in range(count)]:
        started.result()
    torch.set_num_threads(before)  # what threads that start later begin with; theirs stays 1
    return pool


def _compute_alone(barrier: threading.Barrier) -> None:
    """Give this thread one thread to compute with; torch asks for the number once per thread, at its first need."""
    barrier.wait()
    torch.set_num_threads(1)
    torch.get_num_threads()


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=single_threaded.cache_clear)
