"""What may be decided by sizes while a graph is traced. This file needs torch only."""

from contextlib import AbstractContextManager, nullcontext

import torch


def traced() -> bool:
    """Whether a graph is being recorded (torch.compile, torch.export, torch.jit.trace), to be run at other sizes too.

    What is chosen by the number of tokens, for speed, is then chosen without it.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # documented


def known(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds; in a traced graph, whether it does at all sizes that the graph is made for.

    A plain ``if`` would tie the graph to the sizes it is traced with.
    """
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def autocasts(kind: str) -> bool:
    """Whether products on devices of this kind are computed in autocast's type now; some kinds have no autocast."""
    return torch.amp.autocast_mode.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def in_full(kind: str) -> AbstractContextManager:
    """A context on devices of this kind in which autocast rounds nothing.

    Where autocast is off there is nothing to do, and a traced graph stays free of contexts, which files cannot hold.
    """
    return torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext()
