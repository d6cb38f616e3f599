"""What goes wrong with models, done on purpose: one small function each, for `doctor_study.py` and the doctor's tests.

A sabotage changes a `Patient` (a model of its own, its inputs, or what was written down of it) in place. Damage "after"
the training leaves the stored score as it was; damage "before" or "while" training writes the damaged model's own down.
A sabotage that does not fit a model raises `DoesNotApply`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from opencrate.analysis.doctor.outputs import measure_score
from opencrate.store.saved import untrained_copy

Batches = list[dict[str, Tensor]]
ATTENTION_OUTPUT = r"(mssa|attention)\.output\.|o_proj\."
ATTENTION_NORM = r"compress\.norm\.|layernorm_before\."
DICTIONARY, SUBSPACES = r"ista\.dictionary$", r"compress\.mssa\.subspaces\.weight$"
POSITIONS = r"position_embeddings"


class DoesNotApply(Exception):
    """The model has no such part."""


@dataclass
class Patient:
    """A model with everything `opencrate.diagnose` takes; `peer` is the same recipe's model of another seed."""

    model: Any
    batches: Batches
    train_batches: Batches | None = None
    scored: Batches | None = None
    stored: dict[str, float] | None = None
    log: list[dict[str, float]] | None = None
    peer: Any = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def options(self) -> dict[str, Any]:
        """What `diagnose` takes beside the model."""
        names = ("batches", "train_batches", "scored", "stored", "log")
        return {name: getattr(self, name) for name in names}

    def all_batches(self) -> Iterator[dict[str, Tensor]]:
        """Every batch of every part."""
        for part in (self.batches, self.train_batches, self.scored):
            yield from part or []


Sabotage = Callable[[Patient], None]
SABOTAGES: dict[str, tuple[str, Sabotage]] = {}
"""By name: what is done, in words, and the function."""


def sabotage(name: str, what: str) -> Callable[[Sabotage], Sabotage]:
    """Enter a function in `SABOTAGES`."""

    def enter(function: Sabotage) -> Sabotage:
        SABOTAGES[name] = (what, function)
        return function

    return enter


def apply(name: str, patient: Patient) -> None:
    """Do it, without gradients."""
    with torch.no_grad():
        SABOTAGES[name][1](patient)


# --- Finding the parts ---------------------------------------------------------------------------------------------


def parts(patient: Patient, pattern: str, layer: int | None = None) -> list[Tensor]:
    """The parameters whose names match, of one layer (from 0; negative from the end) or of all.

    Raises:
        DoesNotApply: there is none.
    """
    named = {name: weight for name, weight in patient.model.named_parameters() if re.search(pattern, name)}
    if layer is not None:
        number = layer % num_layers(patient)
        named = {name: weight for name, weight in named.items() if f"layers.{number}." in name}
    found = [weight for name, weight in named.items() if not name.startswith("decoder.")]
    if not found:
        raise DoesNotApply(pattern)
    return found


def num_layers(patient: Patient) -> int:
    """Layers of the model (of an autoencoder's encoder)."""
    return patient.model.config.num_hidden_layers


def layers_of(patient: Patient) -> nn.ModuleList:
    """The list of layers."""
    base = patient.model.base_model
    return getattr(base, "encoder", base).layers if not hasattr(base, "layers") else base.layers


def fresh(patient: Patient, seed: int = 1234) -> Any:
    """The same model before any training."""
    return untrained_copy(patient.model, seed)


def noise_like(patient: Patient, weight: Tensor) -> Tensor:
    """Gaussian noise of the weight's own root mean square."""
    return weight.square().mean().sqrt() * torch.randn(weight.shape, generator=patient.generator)


def classifier_of(patient: Patient) -> nn.Linear:
    """The head of a classifier.

    Raises:
        DoesNotApply: the model has none.
    """
    if not isinstance(getattr(patient.model, "classifier", None), nn.Linear):
        raise DoesNotApply("classifier")
    return patient.model.classifier


# --- After training: weights ---------------------------------------------------------------------------------------


def _zero(pattern: str, layer: int | None = None) -> Sabotage:
    def run(patient: Patient) -> None:
        for weight in parts(patient, pattern, layer):
            weight.zero_()

    return run


def _scale(pattern: str, factor: float, layer: int | None = None) -> Sabotage:
    def run(patient: Patient) -> None:
        for weight in parts(patient, pattern, layer):
            weight.mul_(factor)

    return run


def _noise(share: float) -> Sabotage:
    def run(patient: Patient) -> None:
        for weight in patient.model.parameters():
            weight.add_(share * noise_like(patient, weight))

    return run


def _quantise(bits: int) -> Sabotage:
    def run(patient: Patient) -> None:
        for weight in patient.model.parameters():
            if weight.ndim > 1:
                step = weight.abs().max() / max(1, 2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step if step > 0 else weight)

    return run


for _name, _what, _function in (
    ("attention-zero-all", "attention's output zeroed in all layers", _zero(ATTENTION_OUTPUT)),
    ("attention-zero-one", "attention's output zeroed in one layer", _zero(ATTENTION_OUTPUT, 2)),
    ("noise-10", "weight noise, 10 % of each matrix's size", _noise(0.1)),
    ("noise-25", "weight noise, 25 %", _noise(0.25)),
    ("noise-50", "weight noise, 50 %", _noise(0.5)),
    ("noise-100", "weight noise, 100 %", _noise(1.0)),
    ("dictionary-zero-one", "dictionary zeroed in one layer", _zero(DICTIONARY, 2)),
    ("dictionary-zero-all", "dictionary zeroed in all layers", _zero(DICTIONARY)),
    ("dictionary-large", "dictionary 10 times as large in one layer", _scale(DICTIONARY, 10, 2)),
    ("gain-zero", "LayerNorm gain and bias before attention zeroed in one layer", _zero(ATTENTION_NORM, 2)),
    ("gain-huge", "LayerNorm gain before attention 100 times in one layer", _scale(ATTENTION_NORM, 100, 2)),
    ("positions-zero", "position embeddings zeroed", _zero(POSITIONS)),
    ("class-token-zero", "class token zeroed", _zero(r"cls_token")),
    ("quantised-2", "matrices rounded to 2 bits", _quantise(2)),
    ("quantised-4", "matrices rounded to 4 bits", _quantise(4)),
):
    SABOTAGES[_name] = (_what, _function)


@sabotage("layer-fresh", "one layer re-initialised")
def _(patient: Patient) -> None:
    number = 2 % num_layers(patient)
    layers_of(patient)[number].load_state_dict(_layers_of_model(fresh(patient))[number].state_dict())


@sabotage("last-layer-fresh", "the last layer re-initialised")
def _(patient: Patient) -> None:
    layers_of(patient)[-1].load_state_dict(_layers_of_model(fresh(patient))[-1].state_dict())


def _layers_of_model(model: Any) -> nn.ModuleList:
    return layers_of(Patient(model, []))


@sabotage("dictionary-fresh", "one dictionary re-initialised")
def _(patient: Patient) -> None:
    parts(patient, DICTIONARY, 2)[0].copy_(parts(Patient(fresh(patient), []), DICTIONARY, 2)[0])


@sabotage("layers-reversed", "layers in reverse order")
def _(patient: Patient) -> None:
    layers = layers_of(patient)
    states = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]
    for layer, state in zip(layers, reversed(states)):
        layer.load_state_dict(state)


def _drop(patient: Patient, keep: int) -> None:
    del layers_of(patient)[keep:]
    patient.model.config.num_hidden_layers = keep


@sabotage("last-layer-dropped", "the last layer dropped")
def _(patient: Patient) -> None:
    _drop(patient, num_layers(patient) - 1)


@sabotage("half-dropped", "the last half of the layers dropped")
def _(patient: Patient) -> None:
    _drop(patient, num_layers(patient) // 2)


def _duplicate(patient: Patient, layer: int | None) -> None:
    for D in parts(patient, DICTIONARY, layer):
        half = D.shape[1] // 2
        D[:, half : 2 * half] = D[:, :half] + 0.05 * noise_like(patient, D[:, :half])


@sabotage("atoms-duplicate-all", "half of the atoms near-copies of the others (5 % noise), all layers")
def _(patient: Patient) -> None:
    _duplicate(patient, None)


@sabotage("atoms-duplicate-one", "half of the atoms near-copies of the others (5 % noise), one layer")
def _(patient: Patient) -> None:
    _duplicate(patient, 2)


@sabotage("atoms-dead", "95 % of one layer's code switched off by the LayerNorm before it")
def _(patient: Patient) -> None:
    parts(patient, DICTIONARY, 2)
    gain, bias = parts(patient, r"sparsify\.norm", 2)
    off = int(0.95 * len(gain))
    gain[:off], bias[:off] = 0.0, -20.0
    parts(patient, DICTIONARY, 2)[0][:off] = 0


def _equal_heads(patient: Patient, layer: int | None) -> None:
    heads = patient.model.config.num_attention_heads
    for U in parts(patient, SUBSPACES, layer):
        rows = U.unflatten(0, (heads, -1))
        rows[1:] = rows[:1].clone()


@sabotage("heads-equal-all", "all subspaces of a layer equal, all layers")
def _(patient: Patient) -> None:
    _equal_heads(patient, None)


@sabotage("heads-equal-one", "all subspaces equal in one layer")
def _(patient: Patient) -> None:
    _equal_heads(patient, 2)


@sabotage("subspaces-rank-1", "every U_k of one layer of rank 1")
def _(patient: Patient) -> None:
    heads = patient.model.config.num_attention_heads
    for U in parts(patient, SUBSPACES, 2):
        rows = U.unflatten(0, (heads, -1))
        rows[:] = rows[:, :1] + 1e-3 * noise_like(patient, rows)


@sabotage("positions-shuffled", "position embeddings in another order")
def _(patient: Patient) -> None:
    for table in parts(patient, POSITIONS):
        rows = table[0] if table.ndim == 3 else table
        rows[1:] = rows[1:][torch.randperm(len(rows) - 1, generator=patient.generator)]


@sabotage("head-fresh", "head re-initialised")
def _(patient: Patient) -> None:
    classifier_of(patient).load_state_dict(fresh(patient).classifier.state_dict())


@sabotage("class-never", "one class never predicted (its bias -100)")
def _(patient: Patient) -> None:
    classifier_of(patient).bias[3] = -100


@sabotage("class-row-zero", "one class's row of the head zeroed")
def _(patient: Patient) -> None:
    classifier_of(patient).weight[3] = 0
    classifier_of(patient).bias[3] = 0


@sabotage("classes-swapped", "two classes' rows of the head swapped")
def _(patient: Patient) -> None:
    for weight in classifier_of(patient).parameters():
        weight[[3, 8]] = weight[[8, 3]].clone()


@sabotage("constant-answer", "one class's bias +100")
def _(patient: Patient) -> None:
    classifier_of(patient).bias[0] = 100


@sabotage("other-seed-mixed", "average with the weights of another seed")
def _(patient: Patient) -> None:
    _mix(patient, lambda name, mine, other: 0.5 * (mine + other))


@sabotage("other-seed-layer", "one layer of another seed")
def _(patient: Patient) -> None:
    _mix(patient, lambda name, mine, other: other if "layers.2." in name else mine)


def _mix(patient: Patient, choose: Callable[[str, Tensor, Tensor], Tensor]) -> None:
    if patient.peer is None:
        raise DoesNotApply("another seed")
    others = dict(patient.peer.named_parameters())
    for name, weight in patient.model.named_parameters():
        weight.copy_(choose(name, weight, others[name]))


@sabotage("nan", "one weight NaN")
def _(patient: Patient) -> None:
    list(patient.model.parameters())[-1].view(-1)[0] = float("nan")


@sabotage("inf", "one weight infinite")
def _(patient: Patient) -> None:
    list(patient.model.parameters())[4].view(-1)[0] = float("inf")


@sabotage("fp16-overflow", "one attention output 1e6 times as large, model in float16")
def _(patient: Patient) -> None:
    for weight in parts(patient, ATTENTION_OUTPUT, 2):
        weight.mul_(1e6)
    patient.model.half()


# --- After training: configuration ---------------------------------------------------------------------------------


def _configure(patient: Patient, **changes: Any) -> None:
    if not any(hasattr(module, "dictionary") for module in patient.model.modules()):
        raise DoesNotApply("ISTA")
    state = patient.model.state_dict()
    patient.model = untrained_copy(patient.model, 0)
    patient.model.load_state_dict(state)
    for module in patient.model.modules():
        for name, value in changes.items():
            if hasattr(getattr(module, "config", None), name):
                object.__setattr__(module.config, name, value)
    patient.model.eval()


@sabotage("lambda-huge", "λ = 200")
def _(patient: Patient) -> None:
    _configure(patient, ista_lambda=200.0)


@sabotage("eta-flipped", "η with the other sign")
def _(patient: Patient) -> None:
    _configure(patient, ista_step_size=-getattr(patient.model.config, "ista_step_size", 0.0))


# --- After training: inputs, labels, tokens ------------------------------------------------------------------------


def _on_pixels(change: Callable[[Tensor], Tensor]) -> Sabotage:
    def run(patient: Patient) -> None:
        if "pixel_values" not in patient.batches[0]:
            raise DoesNotApply("images")
        for batch in patient.all_batches():
            batch["pixel_values"] = change(batch["pixel_values"])

    return run


def _swap_colours(pixels: Tensor) -> Tensor:
    if pixels.shape[1] != 3:
        raise DoesNotApply("colour")
    return pixels.flip(1)


for _name, _what, _change in (
    ("unnormalised", "mean and deviation missing: pixels in [0, 1]", lambda x: x * 0.5 + 0.5),
    ("pixels-0-255", "pixels from 0 to 255", lambda x: (x * 0.5 + 0.5) * 255),
    ("divided-twice", "pixels divided by 255 twice", lambda x: (x * 0.5 + 0.5) / 255 / 0.5 - 1),
    ("colours-swapped", "BGR for RGB", _swap_colours),
    ("inverted", "images inverted", lambda x: -x),
    ("turned", "images turned by 90 degrees", lambda x: x.rot90(1, (2, 3))),
):
    SABOTAGES[_name] = (_what, _on_pixels(_change))


@sabotage("class-names-shuffled", "classes in another order")
def _(patient: Patient) -> None:
    order = torch.randperm(classifier_of(patient).out_features, generator=patient.generator)
    for batch in patient.all_batches():
        batch["labels"] = order[batch["labels"]]


@sabotage("wrong-tokenizer", "token ids in another order")
def _(patient: Patient) -> None:
    if "input_ids" not in patient.batches[0]:
        raise DoesNotApply("text")
    order = torch.randperm(patient.model.config.vocab_size, generator=patient.generator)
    for batch in {id(batch): batch for batch in patient.all_batches()}.values():
        for name in ("input_ids", "labels"):
            batch[name] = order[batch[name]]


@sabotage("tokens-blank", "the ten most frequent tokens' embeddings zeroed")
def _(patient: Patient) -> None:
    if "input_ids" not in patient.batches[0]:
        raise DoesNotApply("text")
    counts = torch.cat([batch["input_ids"].flatten() for batch in patient.batches]).bincount()
    patient.model.get_input_embeddings().weight[counts.topk(10).indices] = 0


@sabotage("decoder-fresh", "decoder re-initialised")
def _(patient: Patient) -> None:
    if not hasattr(patient.model, "decoder"):
        raise DoesNotApply("decoder")
    patient.model.decoder.load_state_dict(fresh(patient).decoder.state_dict())


@sabotage("mask-token-zero", "mask token zeroed")
def _(patient: Patient) -> None:
    for weight in parts(patient, "mask_token"):
        weight.zero_()


@sabotage("body-fresh", "everything but the head re-initialised")
def _(patient: Patient) -> None:
    head = classifier_of(patient).state_dict()
    patient.model = fresh(patient)
    patient.model.classifier.load_state_dict(head)


# --- Training that went wrong: what it wrote down is the damaged model's own ----------------------------------------


def write_score(patient: Patient) -> None:
    """Store the model's own score, as a run does after its training."""
    if patient.stored is None:
        return
    score, _ = measure_score(patient.model, patient.scored or patient.batches, 1024)
    patient.stored = {"loss": float(score.losses.mean())}
    if score.right is not None:
        patient.stored["accuracy"] = float(score.right.double().mean())


@sabotage("untrained", "saved before training, the stored score as it was")
def _(patient: Patient) -> None:
    patient.model = fresh(patient)


@sabotage("never-stepped", "the optimiser never stepped; loss flat, its own score stored")
def _(patient: Patient) -> None:
    patient.model = fresh(patient)
    patient.log = [{"loss": 2.31}, {"loss": 2.31}, {"loss": 2.31}]
    write_score(patient)


def _retrain(patient: Patient, steps: int, learning_rate: float, shuffle_labels: bool) -> None:
    """A fresh model on the training images, all in one batch; its log and its score are written down."""
    if not patient.train_batches:
        raise DoesNotApply("labelled images")
    classifier_of(patient)
    batch = {name: torch.cat([one[name] for one in patient.train_batches]) for name in patient.train_batches[0]}
    labels = batch["labels"]
    if shuffle_labels:
        labels = labels[torch.randperm(len(labels), generator=patient.generator)]
    patient.model, patient.log = fresh(patient), []
    optimizer = torch.optim.AdamW(patient.model.parameters(), lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss = cross_entropy(patient.model(batch["pixel_values"]).logits, labels)
            patient.log.append({"loss": loss.item()})
            loss.backward()
            optimizer.step()
    patient.model.eval()
    write_score(patient)


@sabotage("diverged", "30 steps at a learning rate of 1")
def _(patient: Patient) -> None:
    _retrain(patient, 30, 1.0, shuffle_labels=False)


@sabotage("labels-shuffled", "trained on 256 images with shuffled labels, 40 steps")
def _(patient: Patient) -> None:
    _retrain(patient, 40, 3e-3, shuffle_labels=True)
