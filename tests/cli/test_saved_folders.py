"""Saved folders whose small print is wrong: the file and the field are named, in no library's own words."""

import json
import re
import shutil

import pytest

from opencrate import CrateImageProcessor
from opencrate._pretrained import read_config, read_image_processor
from opencrate.analysis.doctor.inputs import Case, _add_log
from opencrate.data.images.tensors import ImageTransform
from opencrate.store.saved import load_model

from ..bad_values import complaint

LIBRARY = re.compile(r"huggingface|Can't load|from_pretrained|trust_remote_code|must have|instance of")
PROCESSOR = {
    "size": ("x", {"height": -1, "width": 3}, {"height": 10**9, "width": 10**9}, {"height": "x"}, 0, True),
    "crop_size": ("x", 10**9, {"height": 0}),
    "image_mean": ("x", [None], ["x"], [float("inf")], [0.5, 0.5], [[0.5]], {}),
    "image_std": ("x", [None], [0, 0, 0], [float("nan")] * 3, [1, 1], -1),
    "rescale_factor": ("x", float("inf"), float("nan"), 0, -1, [1]),
    "resample": (99, "x", -1, [2], True),
    "do_resize": (3, "x", []),
    "do_center_crop": (3, "x", []),
    "do_rescale": (3, "x", []),
    "do_normalize": (3, "x", []),
}


@pytest.fixture
def folder(plain_crate, tmp_path):
    read_config(plain_crate).save_pretrained(tmp_path)
    CrateImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False).save_pretrained(tmp_path)
    return tmp_path


def refusal(call):
    with pytest.raises(ValueError) as caught:
        call()
    line = str(caught.value)
    assert complaint(line) is None and not LIBRARY.search(line), line
    return line


def transform(folder):
    return ImageTransform.for_model(read_config(folder), read_image_processor(folder))


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in PROCESSOR.items() for value in values], ids=str
)
def test_numbers_of_an_image_processor(name, value, folder):
    path = folder / "preprocessor_config.json"
    transform(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    line = refusal(lambda: transform(folder))
    assert name in line and "preprocessor_config.json" in line


def test_no_image_processor(folder):
    (folder / "preprocessor_config.json").unlink()
    assert "no image processor there (preprocessor_config.json)" in refusal(lambda: read_image_processor(folder))


@pytest.mark.parametrize("value", ["x", None, [1], 1.5])
def test_a_field_of_another_package_s_configuration(value, folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "num_hidden_layers": value}))
    assert "'num_hidden_layers' has a value of the wrong type" in refusal(lambda: read_config(folder))


def test_tuples_are_not_asked_for(plain_crate, tmp_path):
    """`return_dict` of a folder is about how its author calls it; the commands read outputs by name."""
    shutil.copytree(plain_crate, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "return_dict": False}))
    assert load_model(tmp_path / "m").config.return_dict


@pytest.mark.parametrize(
    "line",
    ['{"loss": "x"}', '{"loss": null}', '{"loss": [1]}', '{"eval_loss": {}}', "3", "null", "[1]", '{"a":' * 9999, ""],
)
def test_a_line_of_a_training_log(line, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n' * bool(line) + line + "\n")
    assert "log.jsonl" in refusal(lambda: _add_log(tmp_path, Case(None)))
