"""The processes of a run started by `torchrun`: what each takes of a batch, and what they agree on."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import distributed
from torch.utils.data import Sampler


class Processes:
    """One process, or those of a `torchrun`; small agreements between their hosts, over gloo.

    To be made after transformers' `TrainingArguments` have joined the process group.
    """

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if several else 1
        self.rank = distributed.get_rank() if several else 0
        self._group: Any = distributed.new_group(backend="gloo") if self.count > 1 else None
        if self._group is not None:
            atexit.register(self._leave)

    def _leave(self) -> None:
        """End gloo's groups while Python still runs: their threads, left behind, abort the process now and then."""
        group, self._group = self._group, None
        if distributed.is_initialized():
            distributed.destroy_process_group(None if distributed.get_backend() == "gloo" else group)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, value: float) -> list[float]:
        """Every process's value, in the order of their ranks; no accelerator is waited for."""
        if self.count == 1:
            return [value]
        own = torch.tensor([value], dtype=torch.float64)
        values = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(values, own, group=self._group)
        return [each.item() for each in values]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return any(self.gather(float(flag)))

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.gather(0.0)


def share_of(batch: Sequence[Any], rank: int, count: int) -> list[Any]:
    """What process `rank` of `count` takes of a global batch: equal consecutive parts, +-1 if it is incomplete.

    Fewer items than processes go to every process, whole: none is left without work, and the mean is the same.
    """
    if len(batch) < count:
        return list(batch)
    return list(batch[rank * len(batch) // count : (rank + 1) * len(batch) // count])


def batches_of_share(length: int, size: int, rank: int, count: int) -> list[list[int]]:
    """What process `rank` of `count` evaluates of `length` items: its `share_of` them in batches of at most `size`.

    Processes have equally many batches, so that those that wait for each other (with sharded weights) end together;
    only batches of a single item may be one fewer.
    """
    share = share_of(range(length), rank, count)
    largest = -(-length // count) if length >= count else length
    number = -(-largest // size)
    if count == 1 or len(share) < number:
        return [share[start : start + size] for start in range(0, len(share), size)]
    return [share_of(share, one, number) for one in range(number)]


class SharedBatches(Sampler[list[Any]]):
    """Batches of process `rank` of `count`: its `share_of` every `count * size` consecutive items of a sampler.

    The sampler gives the order of the epoch, equal in all processes, and has `set_epoch`.
    """

    def __init__(self, sampler: Any, size: int, rank: int = 0, count: int = 1) -> None:
        self.sampler = sampler
        self.size = size
        self.rank = rank
        self.count = count

    def set_epoch(self, epoch: int) -> None:
        """As the sampler's."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // (self.size * self.count))

    def __iter__(self) -> Iterator[list[Any]]:
        items = iter(self.sampler)
        while batch := list(islice(items, self.size * self.count)):
            yield share_of(batch, self.rank, self.count)
