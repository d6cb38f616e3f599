"""States on their way from the layers to the caller who asked for them."""

from typing import Any

import torch
from torch import Tensor, nn

from ._hf import states_asked_for


def record(key: str, state: Tensor | None) -> None:
    """Hand a state to the caller who asked for ``output_<key>``; does nothing otherwise.

    Called where the model uses the state, after all hooks on the modules before, so that it does not matter
    whether a hook or the recording was there first.
    """
    states = states_asked_for(key)
    if states is not None and state is not None:
        states.append(state)


def read_by(module: nn.Module, key: str, tokens: Tensor, *args, **kwargs) -> Any:
    """``module(tokens, ...)``, where what the module reads, after all its pre-hooks, is recorded as ``key``."""
    states = states_asked_for(key)
    if states is None:
        return module(tokens, *args, **kwargs)
    if torch.compiler.is_compiling():  # no hook can be set inside a graph
        states.append(tokens)
        return module(tokens, *args, **kwargs)

    def read(_, arguments: tuple) -> None:
        if states_asked_for(key) is states:  # not what another thread sends through
            states.append(arguments[0])

    handle = module.register_forward_pre_hook(read)
    try:
        return module(tokens, *args, **kwargs)
    finally:
        handle.remove()
