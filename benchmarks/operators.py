"""Speed of OpenCRATE's CRATE-B/16 against the textbook form written from the formulas, in one run.

    python benchmarks/operators.py [--size base | --recipe cifar10-official] [--batch 8] [--layers L] [--repeats 7]
        [--dtypes float32 bfloat16]

The textbook form: one linear map for U, softmax attention as two batched products, a linear output map; ISTA as three
products, ``ReLU(X + eta (D^T X - D^T D X) - eta lam)``. It shares the parameters, so both compute the same function
(checked before timing). Printed: images/s (medians, the two forms interleaved), their ratio, the GEMM rate of the
machine measured in the same run, and the fraction of it that the GEMM FLOPs of each form make up. A CPU without
bfloat16 instructions needs minutes per bfloat16 repeat: cut the model with ``--layers 1`` there.
"""

import argparse
import statistics

import torch
from textbook import TextbookLayer, gemm_rate, times_of
from torch import Tensor, nn
from torch.nn import functional as F

from opencrate import CrateConfig, CrateForImageClassification
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_config


def textbook(model: CrateForImageClassification) -> CrateForImageClassification:
    """The same model (shared parameters) with textbook layers."""
    twin = CrateForImageClassification(model.config)
    twin.load_state_dict(model.state_dict())
    twin.crate.layers = nn.ModuleList([TextbookLayer(layer, model.config) for layer in twin.crate.layers])
    return twin


def gemm_flops(config: CrateConfig, batch: int, ista_products: float, step: bool) -> float:
    """FLOPs of the matrix products of all layers; a step counts a backward of twice the forward."""
    tokens, width = 1 + config.grid_size[0] * config.grid_size[1], config.hidden_size
    rows, inner = batch * tokens, config.num_attention_heads * config.head_dim
    layer = 2 * rows * width * inner * 2 + 2 * 2 * rows * tokens * inner + ista_products * 2 * rows * width**2
    return config.num_hidden_layers * layer * (3 if step else 1)


def _forward(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(images).logits


def _step(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype, optimizer) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = F.cross_entropy(model(images).logits.float(), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_same(ours: nn.Module, other: nn.Module, images: Tensor) -> None:
    difference = (_forward(ours, images, torch.float32) - _forward(other, images, torch.float32)).abs().max()
    assert difference < 1e-4, f"the two forms differ by {difference:.1e}"


def _config(size: str, recipe: str | None) -> CrateConfig:
    if recipe is None:
        return CrateConfig.from_size(size)
    return build_config(load_recipe(recipe), [str(number) for number in range(10)])


def main() -> None:
    """Parse arguments, time, print one line per (dtype, mode)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base")
    parser.add_argument("--recipe", help="the model of a recipe (with 10 classes) in place of a size")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, help="use only so many layers of the model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = _config(arguments.size, arguments.recipe)
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    ours = CrateForImageClassification(config).eval()
    other = textbook(ours).eval()
    images = torch.randn(arguments.batch, config.num_channels, config.image_size, config.image_size)
    labels = torch.randint(config.num_labels, (arguments.batch,))
    _check_same(ours, other, images)
    print(
        f"CRATE {arguments.recipe or arguments.size}, {config.num_hidden_layers} layers, batch {arguments.batch}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name in arguments.dtypes:
        compare(ours, other, images, labels, getattr(torch, name), arguments.repeats)


def compare(
    ours: nn.Module, other: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype, repeats: int
) -> None:
    """Time forward and step of both forms in one data type and print a line for each."""
    config, batch = ours.config, len(images)
    tokens = 1 + config.grid_size[0] * config.grid_size[1]
    rate = gemm_rate(batch * tokens, config.hidden_size, dtype, repeats)
    print(f"{dtype}: GEMM rate {rate / 1e9:.1f} GFLOP/s")
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.0) for model in (ours, other)]
    modes = {
        "forward": [lambda m=m: _forward(m, images, dtype) for m in (ours, other)],
        "step": [lambda m=m, o=o: _step(m, images, labels, dtype, o) for m, o in zip((ours, other), optimizers)],
    }
    for mode, functions in modes.items():
        mine, theirs = (statistics.median(times) for times in times_of(functions, repeats))
        share = [
            gemm_flops(config, batch, products, mode == "step") / seconds / rate
            for products, seconds in ((1, mine), (3, theirs))
        ]
        print(
            f"  {mode:8s} ours {batch / mine:7.2f} images/s ({share[0]:4.0%} of the GEMM rate)   "
            f"textbook {batch / theirs:7.2f} images/s ({share[1]:4.0%})   ratio {theirs / mine:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
