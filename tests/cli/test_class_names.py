"""A converted checkpoint is evaluated: its classes get names by a file, by ImageNet's list, or by order."""

import json

import pytest
from transformers import AutoConfig

from opencrate import CrateConfig, CrateForImageClassification, to_official
from opencrate.data.images.class_names import name_classes, read_class_names

NAMES = ["top", "bottom", "middle"]
"""Not in the order of the folders."""


@pytest.fixture(scope="module")
def official(plain_crate, tmp_path_factory):
    import torch

    file = tmp_path_factory.mktemp("official") / "crate.pth"
    torch.save(to_official(CrateForImageClassification.from_pretrained(plain_crate)), file)
    return file


FORMS = {
    "lines": "\n".join(NAMES) + "\n\n",
    "windows": "\r\n".join(NAMES),
    "list": json.dumps(NAMES),
    "mapping": json.dumps({"1": NAMES[1], "0": NAMES[0], "2": NAMES[2]}),
    "config": json.dumps({"id2label": dict(enumerate(NAMES))}),
    "keras": json.dumps({str(number): [name, "in words"] for number, name in enumerate(NAMES)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_are_read_in_every_form(form, tmp_path):
    file = tmp_path / "names"
    file.write_text(FORMS[form])
    assert read_class_names(str(file)) == NAMES


def test_imagenets_names_are_its_folders_in_order():
    names = read_class_names("imagenet")
    assert len(set(names)) == 1000 and names == sorted(names)
    assert (names[0], names[134], names[999]) == ("n01440764", "n02012849", "n15075141")


def test_a_converted_checkpoint_is_evaluated(opencrate, official, images, official_words, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text(FORMS["lines"])
    assert opencrate("convert", official, tmp_path / "named", *official_words, "--class-names", file).code == 0
    assert opencrate("convert", official, tmp_path / "plain", *official_words).code == 0
    assert AutoConfig.from_pretrained(tmp_path / "named").id2label == dict(enumerate(NAMES))
    refused = opencrate("evaluate", tmp_path / "plain", "--data", images)
    assert refused.code == 2 and "have no names (LABEL_0, ...); give them by" in refused.err
    found = {}
    for name, words in {
        "named": ["named"],
        "file": ["plain", "--class-names", file],
        "order": ["plain", "--class-names", "order"],
    }.items():
        result = opencrate("evaluate", tmp_path / words[0], *words[1:], "--data", images, "--format", "json")
        found[name] = json.loads(result.out)
    assert found["named"]["confusion"] == found["file"]["confusion"] and found["named"]["labels"] == NAMES
    assert found["order"]["labels"] == sorted(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("top\nbottom\n", "names 2 classes, but the model has 3"),
        ("top\ntop\nbottom\n", "class 'top' is named twice"),
        ("top\n\nbottom\n", "class 1 has no name"),
        ("", "class 0 has no name"),
        ("[1, 2, 3]", "no list of class names"),
        ('{"a": "top"}', "no list of class names"),
        ("[" * 100_000, "no list of class names"),
    ],
)
def test_what_names_no_classes_is_one_line(content, message, tmp_path):
    file = tmp_path / "names"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        name_classes(CrateConfig(num_labels=3), read_class_names(str(file)), "--class-names names")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class-names", "imagenet"], "names 1,000 classes, but the model has 3"),
        (["--class-names", "nowhere.txt"], "nowhere.txt: no such file of class names"),
        (["--class-names", "order"], "order of the classes of the images; give --data IMAGES"),
    ],
)
def test_bad_options(opencrate, plain_crate, words, message):
    result = opencrate("evaluate", plain_crate, *words)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1


def test_order_cannot_be_written_into_a_model(opencrate, official, official_words, tmp_path):
    result = opencrate("convert", official, tmp_path / "out", *official_words, "--class-names", "order")
    assert result.code == 2 and "`opencrate evaluate --data`" in result.err and not (tmp_path / "out").exists()
