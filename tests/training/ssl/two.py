"""Started by `torchrun`: every objective's loss and gradients in several processes; see test_processes.py."""

import sys
from functools import partial

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from opencrate.training.ssl import updated_centre
from opencrate.training.ssl.gathering import global_count, global_rows, global_sum, process_count
from opencrate.training.ssl.heads import GlobalBatchNorm, Projector

from .common import FEATURES, GLOBAL, OBJECTIVES, views

IMAGES = 8
SHARES = {"equal": (4, 4), "uneven": (5, 3)}
DTYPES = (torch.float64, torch.float32)


def network(dtype):
    """With batch normalisation, whose statistics are those of the global batch."""
    torch.manual_seed(0)
    head = Projector(5, hidden=7, out=FEATURES, layers=3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head.to(dtype)


def share(rows, shares):
    """This process's part of `(V, IMAGES, p)`."""
    if process_count() == 1:
        return rows
    start = sum(shares[: distributed.get_rank()])
    return rows[:, start : start + shares[distributed.get_rank()]]


def step(objective, shares, dtype):
    """Loss, parts, gradients as DDP averages them, and the network's running statistics."""
    net = network(dtype)
    model = DistributedDataParallel(net) if process_count() > 1 else net
    images, teacher = share(views(4, IMAGES, 5, dtype=dtype), shares), share(views(GLOBAL, IMAGES, seed=1), shares)
    loss, parts = OBJECTIVES[objective](model(images), teacher.to(dtype))
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
    statistics = [m.running_var for m in net.modules() if isinstance(m, GlobalBatchNorm)]
    return {"loss": loss.detach(), **parts, "gradients": gradients, "statistics": torch.cat(statistics)}


def results():
    """Every objective, share and dtype -> what a step gives; the centre; sums, rows and counts."""
    found = {
        (name, kind, str(dtype)): step(name, shares, dtype)
        for name in OBJECTIVES
        for kind, shares in SHARES.items()
        for dtype in DTYPES
    }
    for kind, shares in SHARES.items():
        centre = partial(updated_centre, torch.ones(FEATURES, dtype=torch.float64))
        rows = share(views(GLOBAL, IMAGES, seed=2), shares)
        found[("gathering", kind, "torch.float64")] = {
            "centre": centre(rows),
            "rows": global_rows(rows, 1),
            "sum": global_sum(rows.sum(1)),
            "count": torch.tensor(global_count(rows.shape[1], rows.device)),
        }
    return found


def main():
    distributed.init_process_group("gloo")
    found = results()
    if distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
