"""Every command says in one line, before weights are read, that a folder holds the wrong kind of model."""

import json
import subprocess
import sys

import pytest

from opencrate.store.kinds import KINDS, kind_of

ARCHITECTURES = {
    "CrateForImageClassification": "classifier",
    "ViTForImageClassification": "classifier",
    "CrateMAEForPreTraining": "autoencoder",
    "ViTMAEForPreTraining": "autoencoder",
    "CrateForCausalLM": "causal",
    "GPT2LMHeadModel": "causal",
    "CrateForMaskedLM": "masked",
    "BertForMaskedLM": "masked",
    "CrateForSequenceClassification": "sentences",
    "BertForQuestionAnswering": "sentences",
    "CrateModel": "other",
    "BertForPreTraining": "other",
    "CrateMAEModel": "other",
}
TAKES = {
    "predict": ({"classifier"}, ["IMAGE"]),
    "probe": ({"classifier", "features", "autoencoder"}, []),
    "evaluate": ({"classifier", "causal", "masked"}, []),
    "reconstruct": ({"autoencoder"}, ["IMAGE"]),
    "segment": ({"classifier", "features", "autoencoder", "other"}, ["IMAGE"]),
    "generate": ({"causal"}, ["To be"]),
    "features": ({"causal", "masked", "classifier", "features", "autoencoder", "other"}, []),
    "finetune digits": ({"classifier", "features", "autoencoder", "other"}, []),
    "finetune digits-dino": ({"classifier", "features", "autoencoder", "other"}, []),
    "finetune digits-mae": ({"autoencoder", "other"}, []),
    "finetune text-demo": ({"causal", "masked", "other"}, []),
}


def folder_of(architecture, tmp_path):
    """A folder with a configuration and no weights: whoever reads those fails otherwise."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": "bert"}))
    return tmp_path


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_an_encoder_without_classes_is_no_classifier(opencrate, loose_images, command, tmp_path):
    folder = folder_of("ViTForImageClassification", tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "id2label": {}, "label2id": {}}))
    assert kind_of(folder) == "features"
    result = opencrate(command, folder, *([loose_images] if command == "predict" else []))
    assert result.code == 2 and "an image encoder without classes, not an image classifier" in result.err, result
    assert (
        len(result.err.splitlines()) == 1
        and "can be given to probe, segment, evaluate-segmentation, features, finetune" in result.err
    )


def test_kinds_are_known_without_torch(tmp_path):
    folder = folder_of("GPT2LMHeadModel", tmp_path)
    code = f"import sys; from opencrate.store.kinds import kind_of; print(kind_of({str(folder)!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["causal", "False"], done.stderr


@pytest.mark.parametrize(("architecture", "kind"), ARCHITECTURES.items())
def test_kind(architecture, kind, tmp_path):
    assert kind_of(folder_of(architecture, tmp_path)) == kind and kind in KINDS


SAMPLES = ("CrateForImageClassification", "CrateMAEForPreTraining", "GPT2LMHeadModel", "BertForMaskedLM", "CrateModel")
WRONG = [(command, name) for command in TAKES for name in SAMPLES if ARCHITECTURES[name] not in TAKES[command][0]]


@pytest.mark.parametrize(("command", "architecture"), WRONG)
def test_wrong_kind_is_one_line(opencrate, loose_images, command, architecture, tmp_path):
    _, words = TAKES[command]
    words = [loose_images if word == "IMAGE" else word for word in words]
    name, *recipe = command.split()
    result = opencrate(name, folder_of(architecture, tmp_path), *recipe, *words)
    assert result.code == 2 and result.out == "", result
    (line,) = result.err.splitlines()
    assert f"holds {architecture}, " in line and "it can be given to" in line, line


def test_a_fresh_process_knows_our_kinds(plain_crate):
    """In this process other tests have registered the models long ago."""
    words = ["finetune", str(plain_crate), "imagefolder", "--print-config"]
    done = subprocess.run([sys.executable, "-m", "opencrate", *words], capture_output=True, text=True)
    assert done.returncode == 0 and "model:" in done.stdout, done.stderr
