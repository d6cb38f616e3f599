"""Speed of CRATE-MAE-base/16 against its textbook form, and of an encoder of visible tokens only, in one run.

    python benchmarks/autoencoder.py [--size base] [--batch 8] [--layers L] [--repeats 5] [--threads T]

The textbook form is benchmarks/textbook.py's: two batched products and a softmax for attention, three products for
ISTA. It shares the parameters, so both compute the same function (checked before timing). The decoder's layers have no
ISTA, and so less to save. All that is compared is timed in turn, several times; printed are medians, their ratio, and
the share of the GEMM rate, measured in the same run, that the matrix products of each form make up.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from textbook import TextbookDecoderLayer, TextbookLayer, gemm_rate, times_of
from torch import Tensor, nn

from opencrate import CrateMAEConfig, CrateMAEForPreTraining

TARGETS = {"forward": 1.2, "step": 1.15, "encoder layers": 1.4, "encoder's share of the step": 2.0}


def textbook(model: CrateMAEForPreTraining) -> CrateMAEForPreTraining:
    """A model of the same weights with textbook layers."""
    twin = CrateMAEForPreTraining(model.config)
    twin.load_state_dict(model.state_dict())
    decoder = twin.decoder
    twin.crate.layers = nn.ModuleList([TextbookLayer(layer, model.config) for layer in twin.crate.layers])
    decoder.layers = nn.ModuleList([TextbookDecoderLayer(layer, decoder.config) for layer in decoder.layers])
    return twin.eval()


def layer_flops(config: CrateMAEConfig, rows: int, tokens: int, dictionary_products: float) -> float:
    """FLOPs of one layer's matrix products on ``rows`` tokens, ``tokens`` of them in each image."""
    width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
    return 4 * rows * width * inner + 4 * rows * tokens * inner + dictionary_products * 2 * rows * width**2


def model_flops(config: CrateMAEConfig, batch: int, ista_products: float, encoder_tokens: int | None = None) -> float:
    """FLOPs of a forward: encoder layers, and decoder layers where the encoder's tokens are not given."""
    tokens = 1 + config.grid_size[0] * config.grid_size[1]
    seen = encoder_tokens or tokens
    encoder = config.num_hidden_layers * layer_flops(config, batch * seen, seen, ista_products)
    if encoder_tokens:
        return encoder
    decoder = config.of_decoder()
    return encoder + decoder.num_hidden_layers * layer_flops(decoder, batch * tokens, tokens, 1)


def forward(model: CrateMAEForPreTraining, images: Tensor, noise: Tensor) -> Tensor:
    """Loss and prediction without gradients."""
    with torch.no_grad():
        return model(images, noise=noise).logits


def step(model: CrateMAEForPreTraining, images: Tensor, noise: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step."""
    model(images, noise=noise).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def encode(model: CrateMAEForPreTraining, tokens: Tensor) -> Tensor:
    """The encoder's layers alone, without gradients."""
    with torch.no_grad():
        for layer in model.crate.layers:
            tokens = layer(tokens)
    return tokens


def encoder_step(model: CrateMAEForPreTraining, tokens: Tensor) -> None:
    """The encoder's layers forward and backward, as in a step, without the update of the weights."""
    for layer in model.crate.layers:
        tokens = layer(tokens)
    tokens.sum().backward()
    model.zero_grad(set_to_none=True)


def report(name: str, words: tuple[str, str], functions: list[Callable], flops: list[float], rate: float, a) -> None:
    """Time two functions in turn and print a line."""
    mine, theirs = (statistics.median(times) for times in times_of(functions, a.repeats))
    shares = [count / seconds / rate for count, seconds in zip(flops, (mine, theirs))]
    target = f"  (target {TARGETS[name]:g}x)" if name in TARGETS else ""
    print(
        f"{name:28s} {words[0]} {1e3 * mine:8.1f} ms ({shares[0]:4.0%} of the GEMM rate)   "
        f"{words[1]} {1e3 * theirs:8.1f} ms ({shares[1]:4.0%})   ratio {theirs / mine:.2f}x{target}",
        flush=True,
    )


def against_textbook(model: CrateMAEForPreTraining, images: Tensor, noise: Tensor, rate: float, a) -> None:
    """Forward, step and the encoder's layers, of both forms."""
    config, other = model.config, textbook(model)
    difference = (forward(model, images, noise) - forward(other, images, noise)).abs().max()
    assert difference < 1e-4, f"the two forms differ by {difference:.1e}"
    both, words = (model, other), ("ours", "textbook")
    flops = [model_flops(config, a.batch, products) for products in (1, 3)]
    report("forward", words, [lambda m=m: forward(m, images, noise) for m in both], flops, rate, a)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in both]
    steps = [lambda m=m, o=o: step(m, images, noise, o) for m, o in zip(both, optimizers)]
    report("step", words, steps, [3 * count for count in flops], rate, a)
    tokens = torch.randn(a.batch, 1 + noise.shape[1], config.hidden_size)
    alone = [model_flops(config, a.batch, products, tokens.shape[1]) for products in (1, 3)]
    report("encoder layers", words, [lambda m=m: encode(m, tokens) for m in both], alone, rate, a)


def visible_only(model: CrateMAEForPreTraining, images: Tensor, noise: Tensor, rate: float, a) -> None:
    """An encoder of visible tokens against one of all tokens: its own forward and backward, and the whole step."""
    config = model.config
    few = CrateMAEForPreTraining(CrateMAEConfig.from_dict({**config.to_dict(), "mask_tokens_in_encoder": False})).eval()
    few.load_state_dict(model.state_dict())
    both, words = (few, model), ("visible", "all     ")
    total = 1 + noise.shape[1]
    counts = (1 + int(noise.shape[1] * (1 - config.mask_ratio)), total)
    tokens = [torch.randn(a.batch, count, config.hidden_size) for count in counts]
    flops = [3 * model_flops(config, a.batch, 1, count) for count in counts]
    parts = [lambda m=m, t=t: encoder_step(m, t) for m, t in zip(both, tokens)]
    report("encoder's share of the step", words, parts, flops, rate, a)
    decoder = 3 * model_flops(config, a.batch, 1) - flops[1]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in both]
    steps = [lambda m=m, o=o: step(m, images, noise, o) for m, o in zip(both, optimizers)]
    report("whole step", words, steps, [count + decoder for count in flops], rate, a)


def main() -> None:
    """Parse arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, help="use only so many layers of encoder and decoder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    layers = {"num_hidden_layers": a.layers, "decoder_num_hidden_layers": a.layers} if a.layers else {}
    config = CrateMAEConfig.from_size(a.size, **layers)
    model = CrateMAEForPreTraining(config).eval()
    images = torch.randn(a.batch, config.num_channels, config.image_size, config.image_size)
    noise = torch.rand(a.batch, config.grid_size[0] * config.grid_size[1])
    rate = gemm_rate(a.batch * (1 + noise.shape[1]), config.hidden_size, torch.float32, a.repeats)
    print(
        f"CRATE-MAE {a.size}, {config.num_hidden_layers} + {config.decoder_num_hidden_layers} layers, batch {a.batch}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; GEMM rate {rate / 1e9:.1f} GFLOP/s; "
        f"medians of {a.repeats}"
    )
    against_textbook(model, images, noise, rate, a)
    visible_only(model, images, noise, rate, a)


if __name__ == "__main__":
    main()
