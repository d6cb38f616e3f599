"""The committed fixtures are a cut of the full golden sets, small, and complete enough to test with."""

import pytest
import torch
from safetensors.torch import load_file

from tests.golden import FIXTURES, golden_root
from tests.golden.make_fixtures import KEPT, make_fixtures

FILES = [(set_name, file) for set_name, files in KEPT.items() for file in files]


def test_size_and_files():
    committed = sorted(path for folder in FIXTURES.iterdir() if folder.is_dir() for path in folder.iterdir())
    committed = [path for path in committed if path.suffix in (".safetensors", ".json")]
    expected = [f"{set_name}/{file}.safetensors" for set_name, file in FILES]
    expected += [f"{set_name}/meta.json" for set_name in (*KEPT, "param_counts")]
    assert [str(path.relative_to(FIXTURES)) for path in committed] == sorted(expected)
    assert sum(path.stat().st_size for path in committed) <= 1_560_000


@pytest.mark.parametrize("set_name, file", FILES)
def test_values_are_the_full_sets(set_name, file):
    fixture = load_file(FIXTURES / set_name / f"{file}.safetensors")
    full = load_file(golden_root() / set_name / f"{file}.safetensors")
    assert fixture and fixture.keys() <= full.keys()
    for name, value in fixture.items():
        assert value.dtype == full[name].dtype and torch.equal(value, full[name][: value.shape[0]])


def test_they_are_what_the_script_makes(tmp_path):
    make_fixtures(golden_root(), tmp_path)
    for set_name in (*KEPT, "param_counts"):
        for path in (FIXTURES / set_name).iterdir():
            assert path.read_bytes() == (tmp_path / set_name / path.name).read_bytes(), path.name
