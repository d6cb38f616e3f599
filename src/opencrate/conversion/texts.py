"""The language models of the research fork (nanoGPT's layout): what its tensors have that ours do not, and back."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .names import num_layers, shape_of, subspaces_of

TEXT_FAMILIES = ("crate_lm", "crate_lm_overcomplete")
_DICTIONARY = re.compile(r"transformer\.h\.\d+\.ista\.weight")
_CAUSAL_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")


def num_heads_of(content: Any) -> int | None:
    """K as the fork's training dictionary states it beside the model (``model_args``), if it does."""
    arguments = content.get("model_args") if isinstance(content, Mapping) else None
    heads = arguments.get("n_head") if isinstance(arguments, Mapping) else None
    return heads if isinstance(heads, int) else None


def from_fork(official: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The tensors that carry information, under their official names: D as ``(d, m)``, both tied names, no masks.

    The overcomplete family stores D^T; the complete one also its causal masks.

    Raises:
        ValueError: a causal mask buffer that is not lower-triangular ones.
    """
    tensors = {}
    for name, value in official.items():
        if _CAUSAL_MASK.fullmatch(name):
            _check_causal(name, value)
        elif family == "crate_lm_overcomplete" and _DICTIONARY.fullmatch(name) and value.ndim == 2:
            tensors[name] = value.T.contiguous()
        else:
            tensors[name] = value
    table, head = "transformer.wte.weight", "lm_head.weight"
    if table in tensors or head in tensors:  # either name may have been left out of a file, as the tensor is one
        tensors.setdefault(head, tensors.get(table))
        tensors.setdefault(table, tensors[head])
    return tensors


def to_fork(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The inverse: causal masks again (complete family) and D^T (overcomplete)."""
    if family == "crate_lm_overcomplete":
        return {name: value.T.contiguous() if _DICTIONARY.fullmatch(name) else value for name, value in tensors.items()}
    context, depth = len(tensors["transformer.wpe.weight"]), sum(bool(_DICTIONARY.fullmatch(name)) for name in tensors)
    ones = torch.ones(1, 1, context, context, dtype=tensors["transformer.wpe.weight"].dtype)
    return {**tensors, **{f"transformer.h.{layer}.attn.bias": ones.tril() for layer in range(depth)}}


def infer_config(state_dict: Mapping[str, Tensor], family: str, heads: int | None) -> dict[str, Any]:
    """Constructor arguments of ``CrateTextConfig`` from tensor shapes (our names) and K."""
    vocabulary, width = shape_of(state_dict, "crate.embeddings.token_embeddings.weight", family, 2)
    atoms = shape_of(state_dict, "crate.layers.0.sparsify.ista.dictionary", family, 2)[1]
    published = "base 12, medium 16, large 20, xl 25; one layer 4"
    subspaces = subspaces_of(state_dict, family, heads, published, ", and no model_args lie beside them")
    config = {
        "vocab_size": vocabulary,
        "max_position_embeddings": shape_of(state_dict, "crate.embeddings.position_embeddings.weight", family, 2)[0],
        "hidden_size": width,
        "num_hidden_layers": num_layers(state_dict),
        **subspaces,
    }
    return config | ({} if family == "crate_lm" else {"dictionary_expansion": max(1, atoms // width)})


def _check_causal(name: str, mask: Tensor) -> None:
    square = mask.ndim == 4 and mask.shape[:2] == (1, 1) and mask.shape[2] == mask.shape[3]
    if not square or not torch.equal(mask, torch.ones_like(mask).tril()):
        raise ValueError(f"{name} is not a causal mask (ones on and below the diagonal): shape {tuple(mask.shape)}")
