"""What the compression guard costs in a training step: forward and backward with it and without, in turns.

    python benchmarks/guard_cost.py RUN [--batch 128] [--repeats 7] [--threads 1]

On test images of the run's own data, with its trained weights: how many images need a line search depends on both. The
optimizer is left out, so that in training the ratio is smaller. Prints medians, their ratio and, per layer, the share
of the images whose step was taken back.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn

from opencrate.blocks import compressions
from opencrate.evaluation.inputs import place
from opencrate.guard import GuardedStep
from opencrate.store.inputs import labelled_images
from opencrate.store.saved import open_saved


def main() -> None:
    """Parse arguments, time both forms, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    saved = open_saved(arguments.run)
    steps = [step for step in compressions(saved.model) if step.guarded]
    if not steps:
        parser.error(f"{arguments.run}: the model has no guard; give a run of cifar10-guarded or digits-guarded")
    batch = next(iter(saved.batches(labelled_images(saved, None, "test", False), arguments.batch)))
    images, labels = (place(batch[name], saved.model) for name in ("pixel_values", "labels"))
    half = bool(saved.recipe and saved.recipe.training.bf16)
    model: nn.Module = saved.model.train()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(arguments.repeats + 1):
        for guarded in seconds:
            for step in steps:
                step.guard_waits = not guarded
            started = time.perf_counter()
            with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
                loss = model(pixel_values=images, labels=labels).loss
            loss.backward()
            if repeat:
                seconds[guarded].append(time.perf_counter() - started)
    ratios = [one / other for one, other in zip(seconds[True], seconds[False])]
    print(f"with {median(seconds[True]):.3f} s, without {median(seconds[False]):.3f} s, bfloat16: {half}")
    print(f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("taken back:", ", ".join(f"{share:.2f}" for share in taken_back(saved.model.eval(), images)))


@torch.no_grad()
def taken_back(model: nn.Module, images: torch.Tensor) -> list[float]:
    """Per layer, the share of the images whose step was not taken whole."""
    shares: list[float] = []
    part = GuardedStep._part

    def counted(self: GuardedStep, limit: torch.Tensor) -> torch.Tensor:
        shares[-1] = len(limit) / len(images)
        return part(self, limit)

    handles = [step.register_forward_pre_hook(lambda *_: shares.append(0.0)) for step in compressions(model)]
    GuardedStep._part = counted
    try:
        model(pixel_values=images)
    finally:
        GuardedStep._part = part
        for handle in handles:
            handle.remove()
    return shares


if __name__ == "__main__":
    main()
