"""The states of a model, layer by layer, recorded from its own forward: nothing here computes a layer again.

CRATE models say what their states are; other transformers are read by hooks (`foreign`). What the rates are taken
against is named with every state (`subspace_kind`), because only CRATE learns subspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ...blocks import Compression, compressions, sparsifications
from ...evaluation.inputs import Batch, evaluating, masking, num_inputs_of, place, read_batches
from ...modeling_crate_mae import CrateMAEForPreTraining, CrateMAEPreTrainedModel
from ...positions import Places
from ...registry import LEARNED
from ...sparsification import ISTA
from . import hooks as foreign
from .hooks import BlockHooks

SUBSPACES = {"values": "value projections per head", "keys": "key projections per head", "pca": "PCA of tokens"}
"""What a model without U is measured against, by the name of the option."""

MAX_BATCH = 32
"""Larger batches are cut, so that the states of one batch stay a few hundred MB at ViT-B's size."""

CRATE_HALF_STEP = "Z + MSSA(LN(Z))"


@dataclass(frozen=True)
class LayerStep:
    """What goes in and out of one layer, for a batch of B inputs.

    Attributes:
        before: Z^ℓ `(B, N, d)`.
        projected: `(B, K, N, p)`: what the compression reads, LN(Z^ℓ) or Z^ℓ, times the subspaces.
        subspaces: U^ℓ `(K, d, p)`, as they are (not made orthonormal); what they are says `LayerStates.subspace_kind`.
        compressed: Z^{ℓ+½} `(B, N, d)`.
        after: Z^{ℓ+1} `(B, N, d)`.
        codes: the sparse code `(B, N, m)`: of a CRATE what its ISTA step gives (`after` itself for a complete
            dictionary), of another model its MLP's hidden activation; `None` where that cannot be read.
        mask: `(B, N)` bool, true for real tokens; `None` where all are.
        layer: its number, from 1.
        places: of a CRATE, where the tokens stand, for operators that ask.
        decoded: of a CRATE, whether Z^{ℓ+1} is made from the code, so that it need not be sparse itself.
    """

    before: Tensor
    projected: Tensor | None
    subspaces: Tensor
    compressed: Tensor
    after: Tensor
    codes: Tensor | None = None
    mask: Tensor | None = None
    layer: int = 1
    places: Places | None = None
    decoded: bool = False


@dataclass(frozen=True)
class LayerStates:
    """The states of the recorded layers for one batch of B inputs; tokens are rows.

    Attributes:
        layers: one `LayerStep` per recorded layer, first to last.
        subspace_kind: what `LayerStep.subspaces` are: "learned U" of a CRATE, else a value of `SUBSPACES`.
        half_step: what Z^{ℓ+½} is, in symbols.
        mask: `(B, N)` bool, true for real tokens; `None` where all are.
        attentions: one tensor `(B, K, N, N)` per recorded layer, or `None` if not requested.
        logits: `(B, C)`, or `None` for a model without a classifier.
    """

    layers: tuple[LayerStep, ...]
    subspace_kind: str = LEARNED
    half_step: str = CRATE_HALF_STEP
    mask: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None
    logits: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        """B, the inputs in this batch."""
        return self.layers[0].before.shape[0]

    def steps(self) -> Iterator[LayerStep]:
        """The layers one by one, first to last."""
        return iter(self.layers)


def record(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_inputs: int | None = None,
    layers: Sequence[int] | None = None,
    subspaces: str = "values",
    hooks: BlockHooks | None = None,
    attentions: bool = False,
    batch_size: int = MAX_BATCH,
) -> Iterator[LayerStates]:
    """Run the model once per batch and yield its states; only one batch is held at a time.

    The model runs in evaluation mode without gradients and gets its mode back before each yield. Of a CRATE autoencoder
    the encoder is recorded, on whole images (nothing masked).

    Args:
        model: a CRATE model, or any transformer whose type is in `foreign.KNOWN_MODELS` or whose `hooks` are given;
            with or without a head.
        batches: pixel values `(B, C, H, W)`, token ids `(B, N)`, or mappings with `pixel_values` or `input_ids` (and
            `attention_mask`).
        num_inputs: use this many inputs; `None` uses all.
        layers: layer numbers from 1; `None` records all.
        subspaces: for a model without U, "values" or "keys" (per-head projections). "pca" takes, for every model, the
            principal directions of Z^ℓ over all inputs in K groups of p, which needs a first pass over `batches`.
        hooks: where the blocks of a model of an unknown type keep their states.
        attentions: record the attention maps too (N x N numbers per head and layer); of CRATE models that `has_maps`.
        batch_size: larger batches are cut into pieces of this many inputs.

    Raises:
        ValueError: a model of an unknown type and no hooks; layers that the model does not have; an unknown kind of
            subspaces; no inputs; fewer inputs than requested.
    """
    if subspaces not in SUBSPACES:
        raise ValueError(f"subspaces='{subspaces}': must be one of {', '.join(SUBSPACES)}")
    model = unwrapped(model)
    run = _recorder(model, layers, subspaces, hooks, attentions)
    estimated = None
    if subspaces == "pca" or (_is_crate(model, hooks) and compressions(model)[0].entry.subspaces is None):
        if iter(batches) is batches:
            raise ValueError(
                "batches: can be read only once (a generator); principal directions (subspaces='pca', or an operator "
                "without subspaces) need a list or DataLoader"
            )
        estimated = _estimate(_run(model, run, batches, num_inputs, batch_size))
    for states in _run(model, run, batches, num_inputs, batch_size):
        yield states if estimated is None else _against(states, estimated)
        del states  # so that the next batch does not stand beside it


def describe_states(model: nn.Module, subspaces: str = "values", hooks: BlockHooks | None = None) -> tuple[str, str]:
    """What `record` takes as subspaces and as Z^{ℓ+½} of this model: (`subspace_kind`, `half_step`).

    A CRATE says it by its compression operator; one without subspaces of its own is measured as by "pca".
    """
    model = unwrapped(model)
    if not _is_crate(model, hooks):
        return SUBSPACES[subspaces], foreign.hooks_of(model, hooks).half_step
    step = compressions(model)[0]
    kind = step.entry.subspaces if subspaces != "pca" else None
    return kind or SUBSPACES["pca"], step.entry.half_step(step.config)


def has_maps(model: nn.Module) -> bool:
    """Whether `record` can give attention maps: of a CRATE whose compression operator has them."""
    steps = compressions(unwrapped(model))
    return bool(steps) and "attentions" in steps[0].entry.states


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what DistributedDataParallel, torch.compile or peft put around it; adapters in it stay."""
    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    base = getattr(inner, "get_base_model", None)
    return inner if base is None else base()


def _is_crate(model: nn.Module, hooks: BlockHooks | None) -> bool:
    return hooks is None and bool(compressions(model))


Recorder = Callable[[Mapping[str, Tensor]], LayerStates]


def _recorder(
    model: nn.Module, layers: Sequence[int] | None, subspaces: str, hooks: BlockHooks | None, attentions: bool
) -> Recorder:
    """How this kind of model is recorded, with everything that can be refused refused."""
    if attentions and not (_is_crate(model, hooks) and has_maps(model)):
        steps = compressions(model)
        what = f"compression={steps[0].kind!r}" if steps else type(model).__name__
        raise ValueError(f"attentions=True: recorded for CRATE models only that have maps, not for {what}")
    if _is_crate(model, hooks):
        encoder = model.crate if isinstance(model, CrateMAEForPreTraining) else model
        chosen = _chosen(layers, len(compressions(encoder)))
        return lambda inputs: _crate_states(encoder, inputs, chosen, attentions)
    hooks = foreign.hooks_of(model, hooks)
    blocks = foreign.blocks_of(model, hooks)
    chosen = _chosen(layers, len(blocks))
    which = "values" if subspaces == "pca" else subspaces
    bases = {layer: foreign.projection_bases(model, blocks[layer - 1], hooks, which) for layer in chosen}
    return lambda inputs: _foreign_states(model, inputs, blocks, bases, hooks, which)


def _run(
    model: nn.Module, run: Recorder, batches: Iterable[Batch], num_inputs: int | None, batch_size: int
) -> Iterator[LayerStates]:
    for fields in read_batches(batches, num_inputs, batch_size):
        inputs = {name: place(value, model) for name, value in fields.items() if name != "labels"}
        with evaluating(model):
            states = run(inputs)
        assert states.num_inputs == num_inputs_of(fields)
        yield states
        del states


def _crate_states(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int], attentions: bool) -> LayerStates:
    """What a CRATE model reports of itself."""
    steps = compressions(model)
    bases = [_bases(step) for step in steps]
    run = model.base_model if hasattr(model, "lm_head") else model  # token logits are not used
    whole = masking(model, 0.0) if isinstance(model, CrateMAEPreTrainedModel) else nullcontext()
    with whole, _places_of(steps[0]) as places:
        outputs = run(
            **inputs,
            output_hidden_states=True,
            output_compressed_states=True,
            output_projected_states=True,
            output_sparse_codes=True,
            output_attentions=attentions,
        )
    mask = _mask(inputs)
    last = sparsifications(model)[0]
    decoded = isinstance(last.operator, ISTA) and (last.residual or last.operator.decode != "none")
    kind, half_step = describe_states(model)
    found = tuple(
        LayerStep(
            before=outputs.hidden_states[layer - 1],
            projected=outputs.projected_states[layer - 1] if outputs.projected_states else None,
            subspaces=bases[layer - 1],
            compressed=outputs.compressed_states[layer - 1],
            after=outputs.hidden_states[layer],
            codes=outputs.sparse_codes[layer - 1] if outputs.sparse_codes else None,
            mask=mask,
            layer=layer,
            places=places[0] if places else None,
            decoded=decoded,
        )
        for layer in layers
    )
    maps = tuple(outputs.attentions[layer - 1] for layer in layers) if attentions else None
    return LayerStates(found, kind, half_step, mask, maps, getattr(outputs, "logits", None))


@contextmanager
def _places_of(step: Compression) -> Iterator[list[Places | None]]:
    """The places that a compression step is given, once it has run."""
    found: list[Places | None] = []
    handle = step.register_forward_pre_hook(
        lambda module, inputs, keywords: found.append(keywords.get("places")), with_kwargs=True
    )
    try:
        yield found
    finally:
        handle.remove()


def require_finite(Z: Tensor, holder: str) -> None:
    """Say where numbers stopped being finite: `holder` names the layer and the state, and ends in "hold(s)"."""
    if not torch.isfinite(Z).all():
        raise ValueError(
            f"{holder} NaN or infinite values; the model's weights or its input are damaged, or training diverged"
        )


def _bases(step: Compression) -> Tensor:
    """U `(K, d, p)`; of an operator that has none, only the shape that principal directions are to have."""
    if step.entry.subspaces is not None:
        return step.operator.bases().detach()
    config = step.config
    return next(step.parameters()).new_empty(config.num_attention_heads, config.hidden_size, config.head_dim)


def _foreign_states(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    blocks: Sequence[nn.Module],
    bases: Mapping[int, Tensor],
    hooks: BlockHooks,
    which: str,
) -> LayerStates:
    """What hooks on the blocks of another transformer read, against `bases` by layer."""
    found = foreign.run_and_capture(model, inputs, [blocks[layer - 1] for layer in bases], hooks, which)
    mask = _mask(inputs)
    steps = tuple(
        LayerStep(**dict[str, Any](states), subspaces=bases[layer], mask=mask, layer=layer)
        for layer, states in zip(bases, found)
    )
    return LayerStates(steps, subspace_kind=SUBSPACES[which], half_step=hooks.half_step, mask=mask)


def _mask(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """True for real tokens; `None` where all are."""
    if "input_ids" not in inputs or "attention_mask" not in inputs or inputs["attention_mask"].bool().all():
        return None
    return inputs["attention_mask"].bool()


def _chosen(layers: Sequence[int] | None, total: int) -> tuple[int, ...]:
    """The layers to record, in order."""
    layers = range(1, total + 1) if layers is None else layers
    chosen = tuple(sorted(set(layers)))
    if not chosen:
        raise ValueError(f"layers={layers}: empty; choose from 1 to {total}, or None for all")
    wrong = [layer for layer in chosen if not 1 <= layer <= total]
    if wrong:
        raise ValueError(f"layers={list(layers)}: the model has layers 1 to {total}, not {wrong[0]}")
    return chosen


def _estimate(passes: Iterable[LayerStates]) -> dict[int, Tensor]:
    """Principal directions of the tokens Z^ℓ of each layer over all batches."""
    moments: dict[int, Tensor] = {}
    shapes: dict[int, tuple[int, int]] = {}
    for states in passes:
        for step in states.steps():
            tokens = (step.before if step.mask is None else step.before[step.mask]).flatten(0, -2).double()
            moments[step.layer] = moments.get(step.layer, 0) + tokens.mT @ tokens
            shapes[step.layer] = step.subspaces.shape[0], step.subspaces.shape[2]
    return {layer: foreign.principal_bases(moment, *shapes[layer]) for layer, moment in moments.items()}


def _against(states: LayerStates, bases: Mapping[int, Tensor]) -> LayerStates:
    """The same states with other subspaces."""
    steps = []
    for step in states.steps():
        U = bases[step.layer].to(step.before.dtype)
        steps.append(replace(step, subspaces=U, projected=torch.einsum("bnd,kdp->bknp", step.before, U)))
    return replace(states, layers=tuple(steps), subspace_kind=SUBSPACES["pca"])
