"""Keeping freed memory: fewer page faults where glibc is, the same numbers everywhere."""

import platform
import subprocess
import sys

import pytest

from opencrate.training.allocator import keep_freed_memory

STEPS = """
import resource, torch
from opencrate.training.allocator import keep_freed_memory
def step():
    for _ in range(4):
        large = torch.zeros(12 << 20)  # 48 MiB: beyond the largest threshold that glibc takes by itself
def fewest():
    found = []
    for _ in range(6):  # the first ones make room
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)
given_back = fewest()
assert keep_freed_memory()
print(given_back, fewest())
"""


def test_says_whether_it_could():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_page_faults_of_large_tensors_stop():
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept < 1000 and given_back > 10 * max(kept, 100)
