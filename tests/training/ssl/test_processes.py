"""Two processes give the loss and the gradients that one gives on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .common import OBJECTIVES
from .two import SHARES, results

ROOT = Path(__file__).parents[3]
TOLERANCE = {"torch.float64": 1e-11, "torch.float32": 1e-6}
"""Relative, by the norm. Rounding alone; a wrong factor of the gradient would be 1, or the number of processes."""


@pytest.fixture(scope="module")
def one():
    return results()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp("ssl") / "two.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.ssl.two", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients(one, two, name, kind, dtype):
    compare(one[name, kind, dtype], two[name, kind, dtype], TOLERANCE[dtype])


@pytest.mark.parametrize("kind", SHARES)
def test_centre_rows_and_sums(one, two, kind):
    first, second = (run["gathering", kind, "torch.float64"] for run in (one, two))
    assert second["count"] == 8 and torch.equal(first["rows"], second["rows"])
    compare(first, second, 1e-12)


def compare(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.shape == second[name].shape and value.dtype == second[name].dtype
        difference = (value - second[name]).double().norm().item()
        print(f"{name}: {difference:.1e} of {value.double().norm():.1e}")
        assert difference <= tolerance * value.double().norm().item(), name
