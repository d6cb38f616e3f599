"""Speed of the CRATE language models against the textbook form and transformers' GPT-2 of the same width, in one run.

    python benchmarks/text.py step     [--size gpt-base] [--layers L] [--batch 4] [--block 256] [--repeats 7]
    python benchmarks/text.py decode   [--sizes gpt-base lm-base alpha-base] [--prompt 256] [--new 256] [--repeats 3]
    python benchmarks/text.py memory   [--sizes ...] [--prompt 256] [--new 256]

The textbook form is benchmarks/operators.py's: unfused attention, ISTA in three products, the same parameters (the two
are checked to compute the same).

`step`: forward, backward and an SGD update; of the layers alone (random tokens in, a random linear function of what
comes out) and of the whole model with its embedding, unembedding and loss; the unembedding's share is its products and
the loss, measured alone.
`decode`: milliseconds per token of greedy generation, the prompt's time included. CRATE and GPT-2 generate by
transformers' `generate` with a cache; the textbook form computes the whole context anew for each token, logits of the
last place only, timed at `--contexts` lengths spread evenly over the generation (it grows smoothly between them).
`memory`: peak resident memory of a process that does nothing but generate, above its start, and the caches' bytes.

All are medians of interleaved repeats; weights are random, so that about half of an overcomplete code is not zero.
"""

import argparse
import resource
import statistics
import subprocess
import sys

import torch
from textbook import TextbookLayer, times_of
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from opencrate import CrateForCausalLM, CrateTextConfig
from opencrate._hf import CACHE


def crate(size: str, layers: int | None = None) -> CrateForCausalLM:
    """A model of a named size with random weights."""
    config = CrateTextConfig.from_size(size)
    torch.manual_seed(0)
    return CrateForCausalLM(
        CrateTextConfig.from_size(size, num_hidden_layers=layers or config.num_hidden_layers)
    ).eval()


def gpt2(config: CrateTextConfig) -> GPT2LMHeadModel:
    """transformers' GPT-2 of the same width, depth, heads, vocabulary and context; no dropout."""
    torch.manual_seed(0)
    sizes = {"n_embd": config.hidden_size, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads}
    text = {"vocab_size": config.vocab_size, "n_positions": config.max_position_embeddings}
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | {
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return GPT2LMHeadModel(GPT2Config(**sizes, **text, **none)).eval()


def textbook(model: CrateForCausalLM) -> CrateForCausalLM:
    """The same model (shared parameters) with textbook layers."""
    twin = CrateForCausalLM(model.config).eval()
    twin.crate.embeddings, twin.lm_head = model.crate.embeddings, model.lm_head
    if model.config.final_norm:
        twin.crate.norm = model.crate.norm
    twin.crate.layers = nn.ModuleList([TextbookLayer(layer, model.config) for layer in model.crate.layers])
    return twin


def same(model: CrateForCausalLM, twin: CrateForCausalLM, ids: Tensor) -> None:
    """Refuse to time two different functions."""
    with torch.no_grad():
        ours, theirs = (m(ids, use_cache=False).logits for m in (model, twin))
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < 1e-4, f"the two forms differ by {difference:.1e} of the largest logit"


# --- training steps -------------------------------------------------------------------------------------------------


def step(a: argparse.Namespace) -> None:
    """One line for the layers alone, one for the whole step, one for the unembedding."""
    model = crate(a.size, a.layers)
    twin = textbook(model)
    config = model.config
    ids = torch.randint(config.vocab_size, (a.batch, a.block))
    same(model, twin, ids[:, :32])
    tokens, weights = (torch.randn(a.batch, a.block, config.hidden_size) for _ in range(2))

    def layers(m: CrateForCausalLM) -> None:
        out = tokens
        for layer in m.crate.layers:
            out = layer(out, None)
        (out * weights).sum().backward()
        update(m.crate.layers)

    def whole(m: CrateForCausalLM) -> None:
        m(ids, labels=ids, use_cache=False).loss.backward()
        update(m)

    def unembedding() -> None:
        leaf = tokens.clone().requires_grad_()
        logits = F.linear(leaf, model.lm_head.weight)
        model.loss_function(logits, ids, config.vocab_size).backward()
        model.zero_grad(set_to_none=True)

    functions = [lambda m=m, f=f: f(m) for f in (layers, whole) for m in (model, twin)] + [unembedding]
    medians = [1e3 * statistics.median(seconds) for seconds in times_of(functions, a.repeats)]
    print(f"{a.size}, {config.num_hidden_layers} layers, batch {a.batch}, block {a.block}, {where()}")
    for name, ours, theirs in (("layers", *medians[:2]), ("whole", *medians[2:4])):
        print(f"  {name:7s} ours {ours:8.0f} ms   textbook {theirs:8.0f} ms   ratio {theirs / ours:.2f}x")
    print(f"  unembedding and loss {medians[4]:.0f} ms: {medians[4] / medians[2]:.0%} of our whole step")


def update(module: nn.Module) -> None:
    """Plain SGD with step size 0: the cost of a pass over the parameters, and the same weights for every repeat."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=0.0)
                parameter.grad = None


# --- generation -----------------------------------------------------------------------------------------------------


def generate(model: nn.Module, prompt: Tensor, new: int) -> Tensor:
    """Greedy tokens, exactly ``new`` of them."""
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False)


def recompute(twin: CrateForCausalLM, context: Tensor) -> None:
    """The textbook form's next token: the whole context anew, logits of the last place."""
    with torch.no_grad():
        twin(context, use_cache=False, logits_to_keep=1)


def decode(a: argparse.Namespace) -> None:
    """Per size: ms per token of CRATE, GPT-2 and the textbook form, interleaved, and the caches' bytes."""
    print(f"decode {a.new} tokens after {a.prompt}, {where()}")
    for size in a.sizes:
        model = crate(size, a.layers)
        other, twin = gpt2(model.config), textbook(model)
        prompt = torch.randint(model.config.vocab_size, (1, a.prompt + a.new))
        same(model, twin, prompt[:, :32])
        lengths = [a.prompt + round((i + 0.5) * a.new / a.contexts) for i in range(a.contexts)]
        functions = [lambda m=m: generate(m, prompt[:, : a.prompt], a.new) for m in (model, other)]  # noqa: B023
        functions += [lambda n=n: recompute(twin, prompt[:, :n]) for n in lengths]  # noqa: B023
        ours, theirs, *anew = (1e3 * statistics.median(seconds) for seconds in times_of(functions, a.repeats))
        ours, theirs, anew = ours / a.new, theirs / a.new, statistics.mean(anew)
        half = cache_bytes(model, prompt) / cache_bytes(other, prompt)
        print(
            f"  {size:11s} {ours:6.1f} ms per token   GPT-2 {theirs:6.1f}: {ours / theirs:.2f} of its time   textbook, "
            f"whole context anew, {anew:7.1f}: {anew / ours:.1f}x   cache {half:.2f} of GPT-2's bytes",
            flush=True,
        )


def cache_bytes(model: nn.Module, prompt: Tensor) -> int:
    """Bytes of the numbers that the cache of so many tokens holds."""
    with torch.no_grad():
        cache = model(prompt, use_cache=True, logits_to_keep=1)[CACHE]
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def memory(a: argparse.Namespace) -> None:
    """Peak resident memory of each model's generation, in a process of its own."""
    for size in a.sizes:
        for kind in ("crate", "gpt2"):
            words = [sys.executable, __file__, "peak", "--kind", kind, "--sizes", size]
            words += ["--prompt", str(a.prompt), "--new", str(a.new)]
            subprocess.run(words, check=True)


def peak(a: argparse.Namespace) -> None:
    """What `memory` runs in each process."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = crate(a.sizes[0]) if a.kind == "crate" else gpt2(CrateTextConfig.from_size(a.sizes[0]))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    prompt = torch.randint(model.config.vocab_size, (1, a.prompt))
    generate(model, prompt, a.new)
    most = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
    cache = cache_bytes(model, torch.zeros(1, a.prompt + a.new - 1, dtype=torch.long))
    print(
        f"{a.sizes[0]} {a.kind}: peak {most / 2**20:.0f} MiB above the libraries, weights {weights / 2**20:.0f} MiB, "
        f"cache {cache / 2**20:.1f} MiB",
        flush=True,
    )


def where() -> str:
    """Threads and version, for the record."""
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Parse arguments and run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("step", "decode", "memory", "peak"))
    parser.add_argument("--size", default="gpt-base", help="of step")
    parser.add_argument(
        "--sizes", nargs="+", default=["gpt-base", "lm-base", "alpha-base"], help="of decode and memory"
    )
    parser.add_argument("--layers", type=int, help="use only so many layers of the model")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--contexts", type=int, default=4, help="lengths at which the textbook form is timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", default="crate", choices=("crate", "gpt2"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"step": step, "decode": decode, "memory": memory, "peak": peak}[arguments.part](arguments)


if __name__ == "__main__":
    main()
