"""What the measures at the end of an epoch cost, against the epoch of the CIFAR-10 run that they stand in.

    python benchmarks/training_measures.py [--recipe cifar10] [--images 64] [--training-images 50000] [--repeats 7]

A training step (forward, backward, optimizer, on random images of the recipe's size) and one measurement (64 images:
forwards, R, R^c, ΔR, ℓ0, ℓ1 and dead atoms of every layer) are timed in turns in one process, after one call each to
warm up. Printed: both medians, the steps of an epoch, and the share of an epoch that one measurement makes up. Loading
and augmenting images, which only make an epoch longer, are left out.
"""

import argparse
import math
import statistics

import torch

from opencrate.bench.timing import in_turns
from opencrate.configuration_crate import pair
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_config, initialise
from opencrate.training.losses import cross_entropy_sum
from opencrate.training.optimizers import build_optimizer
from opencrate.training.whitebox_callback import measured_layers


def main() -> None:
    """Parse arguments, time both, print the share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--training-images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    training = recipe.training
    model = initialise(build_config(recipe, [str(number) for number in range(10)]), training.seed).train()
    optimizer = build_optimizer(model, recipe)
    batch, shape = training.per_device_train_batch_size, (recipe.data.num_channels, *pair(recipe.data.image_size))
    images, labels = torch.randn(batch, *shape), torch.randint(10, (batch,))
    measured = {"pixel_values": torch.randn(arguments.images, *shape)}

    def step() -> None:
        optimizer.zero_grad()
        (cross_entropy_sum(model(images).logits, labels) / batch).backward()
        optimizer.step()

    both = {"step": step, "measurement": lambda: measured_layers(model, measured, 256)}
    seconds = [statistics.median(times) for times in in_turns(both, arguments.repeats).values()]
    steps = math.ceil(arguments.training_images / batch)
    threads = torch.get_num_threads()
    print(f"{arguments.recipe}, torch {torch.__version__}, {threads} threads; medians of {arguments.repeats}")
    print(f"training step: {1e3 * seconds[0]:.1f} ms; epoch of {steps} steps: {steps * seconds[0]:.1f} s")
    print(f"measurement on {arguments.images} images: {1e3 * seconds[1]:.1f} ms, ", end="")
    print(f"{100 * seconds[1] / (steps * seconds[0]):.3f} % of an epoch")


if __name__ == "__main__":
    main()
