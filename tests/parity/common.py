"""What the parity tests share: comparison at the contract's tolerance, and the recorded run of a converted model."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from opencrate import CrateForImageClassification, load_official
from opencrate.conversion import official_name
from tests.golden import golden_meta, golden_root, load_golden, sub_dict

TOLERANCE = 2e-5
STATES = ("hidden_states", "compressed_states", "projected_states", "sparse_codes", "attentions")


def present(set_name: str) -> list[str]:
    """Files of a set that are here (all of them, or the committed fixtures)."""
    return sorted(path.stem for path in (golden_root() / set_name).glob("*.safetensors"))


def deviation(ours: Tensor, golden: Tensor) -> float:
    """max |difference| / max(1, max |value|); a fixture may hold the first samples only."""
    assert ours.shape[1:] == golden.shape[1:], (ours.shape, golden.shape)
    assert 1 <= golden.shape[0] <= ours.shape[0]
    golden = golden.to(torch.float64)
    difference = (ours.detach().to(torch.float64)[: golden.shape[0]] - golden).abs().max().item()
    return difference / max(1.0, golden.abs().max().item())


def compare(file: str, golden: dict[str, Tensor], computed: dict[str, Callable[[], Tensor]], inputs: Iterable[str]):
    """Compare every tensor of a golden file with ours; a name that is neither input nor computed fails the test."""
    inputs = set(inputs)
    left_over = {name for name in golden if name not in computed and name not in inputs and not _is_weight(name)}
    assert not left_over, f"{file}: nothing compares {sorted(left_over)}"
    deviations = {name: deviation(computed[name](), golden[name]) for name in golden if name in computed}
    worst = max(deviations, key=deviations.get)
    print(f"{file}: {len(deviations)} tensors, worst {worst} {deviations[worst]:.1e}")
    assert deviations[worst] <= TOLERANCE, {name: d for name, d in deviations.items() if d > TOLERANCE}
    for name in deviations:
        if name.startswith("grad."):  # many are far below 1, where the bound above says little
            scale = golden[name].abs().max().item()
            assert (computed[name]() - golden[name]).abs().max().item() <= 1e-3 * scale, name


def _is_weight(name: str) -> bool:
    return name.startswith(("state_dict.", "override."))


def converted(set_name: str, file: str, family: str, dtype: torch.dtype, **overrides) -> CrateForImageClassification:
    """The golden file's model: sizes and settings from ``meta.json``, weights from its state dict."""
    meta = golden_meta(set_name)["files"][f"{file}.safetensors"]
    config = meta.get("config")
    if not isinstance(config, dict):  # "as main", with the overridden tensors substituted
        config = golden_meta(set_name)["files"]["main.safetensors"]["config"]
    tensors = load_golden(set_name, file)
    weights = sub_dict(tensors, "state_dict.") or sub_dict(load_golden(set_name, "main"), "state_dict.")
    weights |= sub_dict(tensors, "override.")
    return load_official(
        {name: value.to(dtype) for name, value in weights.items()},
        family,
        num_attention_heads=config["heads"],
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        pool=config.get("pool", "cls"),
        **{"ista_step_size": config.get("ista", 0.1), "ista_lambda": 0.1, **overrides},
    )


def record(model: CrateForImageClassification, images: Tensor):
    """One run with every state recorded, gradients on."""
    return model(images.to(model.dtype), **{f"output_{name}": True for name in STATES})


def state_tensors(model, images: Tensor, outputs) -> dict[str, Callable[[], Tensor]]:
    """Golden name -> our tensor, for everything a recorded run holds."""
    computed = {
        "tokens_embedded": lambda: outputs.hidden_states[0],
        "patches_embedded": lambda: model.crate.embeddings.patch_embeddings(images.to(model.dtype)),
        "logits": lambda: outputs.logits,
        "pooled": lambda: model.crate(images.to(model.dtype)).pooler_output,
    }
    for layer in range(model.config.num_hidden_layers):
        states = {
            "projected": outputs.projected_states[layer],
            "attention": outputs.attentions[layer],
            "half": outputs.compressed_states[layer],
            "out": outputs.hidden_states[layer + 1],
            "code2": outputs.sparse_codes[layer],
            "ista_out": outputs.hidden_states[layer + 1] - outputs.compressed_states[layer],
        }
        computed |= {f"layer{layer}.{name}": functools.partial(lambda x: x, value) for name, value in states.items()}
    return computed


def losses(logits: Tensor, labels: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "loss_ce": lambda: F.cross_entropy(logits, labels)[None],
        "loss_label_smoothing_0.1": lambda: F.cross_entropy(logits, labels, label_smoothing=0.1)[None],
    }


def gradients(model, loss: Tensor, family: str) -> dict[str, Callable[[], Tensor]]:
    """``grad.<official name>`` -> gradient of the loss with respect to that parameter."""
    model.zero_grad()
    loss.backward()
    named = {f"grad.{official_name(name, family)}": parameter for name, parameter in model.named_parameters()}
    assert all(parameter.grad is not None for parameter in named.values())
    return {name: functools.partial(lambda p: p.grad, parameter) for name, parameter in named.items()}
