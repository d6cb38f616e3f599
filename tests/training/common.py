"""What two runs have in common, bit for bit."""

import json

import torch
from safetensors.torch import load_file

RANDOM = (
    "augmentation.crop=padded",
    "augmentation.flip=0.5",
    "augmentation.erasing=0.5",
    "augmentation.mixup=0.4",
    "augmentation.cutmix=1.0",
    "optimiser.ema_decay=0.9",
    "training.label_smoothing_factor=0.1",
)
"""Everything random that a recipe can ask for, and the moving average."""


WHITENED = ("model.whiten_patches=true", "model.config.patch_embedding=conv")


def weights(directory):
    """Every tensor that a run leaves: the averaged and the last weights."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found.update({f"{path.name}:{name}": value for name, value in load_file(path).items()})
    return found


def log_of(directory):
    """The log without wall-clock times and without the summary of the last piece."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    wanted = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy")
    return [{name: line[name] for name in wanted if name in line} for line in lines]


def assert_same_run(one, other):
    """Weights, history and log of two run directories are equal, bit for bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and first
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} tensors differ: {different[:3]}"
    histories = [json.loads((run / "metrics.json").read_text())["history"] for run in (one, other)]
    assert histories[0] == histories[1]
    measured = [json.loads((run / "metrics.json").read_text()).get("white_box") for run in (one, other)]
    assert measured[0] == measured[1]
    monitored = [json.loads((run / "metrics.json").read_text()).get("self_supervision", {}) for run in (one, other)]
    for found in monitored:
        found.pop("evaluation_seconds", None)
    assert monitored[0] == monitored[1]
    assert log_of(one) == log_of(other)
