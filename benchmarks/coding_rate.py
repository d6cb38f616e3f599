"""Time of R^c from the projected states of one layer: `opencrate.coding_rate` against the textbook form.

The textbook form is `torch.logdet(I_N + p/(N eps^2) V V^T)` on N x N matrices in the states' dtype. Both run in turn
in one process, so that whatever else the machine does weighs on both. The default shape is a CRATE-B/16 layer.

    python benchmarks/coding_rate.py --batch 32 --subspaces 12 --tokens 197 --dim 64
"""

import argparse
import statistics
from functools import partial

import torch

from opencrate.bench.timing import in_turns
from opencrate.objective import coding_rate


def textbook(V: torch.Tensor, eps: float) -> torch.Tensor:
    """R^c (B) of V (B, K, N, p) through the N x N determinant."""
    N, p = V.shape[-2:]
    identity = torch.eye(N, dtype=V.dtype, device=V.device)
    return 0.5 * torch.logdet(identity + p / (N * eps**2) * V @ V.mT).sum(-1)


def ours(V: torch.Tensor, eps: float) -> torch.Tensor:
    return coding_rate(V, eps).sum(-1)


def call(function, V: torch.Tensor, eps: float, backward: bool) -> torch.Tensor:
    """The rates, and the gradient for V if asked."""
    V = V.detach().requires_grad_(backward)
    value = function(V, eps)
    if backward:
        value.sum().backward()
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--subspaces", type=int, default=12, help="K")
    parser.add_argument("--tokens", type=int, default=197, help="N")
    parser.add_argument("--dim", type=int, default=64, help="p, the dimension of a subspace")
    parser.add_argument("--eps", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each form, at least 7")
    parser.add_argument("--backward", action="store_true", help="time the gradient as well")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.repeats < 7:
        parser.error(f"--repeats must be at least 7 for a median worth printing, got {arguments.repeats}")
    return arguments


def main() -> None:
    a = parse()
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(a.batch, a.subspaces, a.tokens, a.dim, generator=generator).to(a.device)
    print(f"torch {torch.__version__}, {a.device}, {torch.get_num_threads()} threads, float32 states {tuple(V.shape)}")
    print(
        "The LU factorisation of the textbook form may print 'Intel oneMKL ERROR' lines: that is torch's, not hidden."
    )
    forms = {"textbook logdet, N x N": textbook, "opencrate.coding_rate": ours}
    with torch.set_grad_enabled(a.backward):
        values = [call(form, V, a.eps, a.backward) for form in forms.values()]
        calls = {name: partial(call, form, V, a.eps, a.backward) for name, form in forms.items()}
        times = {name: [1e3 * one for one in found] for name, found in in_turns(calls, a.repeats).items()}
    difference = ((values[0] - values[1]).abs() / values[1].abs()).max().item()
    print(f"largest relative difference of the values: {difference:.1e}")
    for name, t in times.items():
        print(f"{name:24s} median {statistics.median(t):8.1f} ms   min {min(t):8.1f}   max {max(t):8.1f}")
    reference, measured = (statistics.median(t) for t in times.values())
    what = "forward and gradient" if a.backward else "forward"
    print(f"ratio ({what}, {a.repeats} repeats): {measured / reference:.3f} of the textbook form's time")


if __name__ == "__main__":
    main()
