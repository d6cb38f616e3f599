"""Cost of the layer measures of a CRATE, set against its forward passes, in one run.

    python benchmarks/measures.py --size base --images 100 --threads 2
    python benchmarks/measures.py --memory --images 1000

Every batch is run and measured in turn (forward, forward with its states recorded, each set, each measure alone), so
that whatever else the machine does weighs on all; medians over batches. The forward is the model's own, in evaluation
mode without gradients, on random pixels and weights. "released formulation" is what the published tool computes, one
N x N log-determinant per head, beside ours of the same quantity.

`--decay 1` multiplies the states by a matrix whose singular values fall as 1/k: ill-conditioned, as a collapsed
model's, where float32 products do not suffice and the rates are taken in float64.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opencrate import CrateConfig, CrateForImageClassification
from opencrate.analysis.layers.measure import measure_states, plan_measures, released_coding_rate
from opencrate.analysis.layers.registry import MEASURES, RELEASED_EPS_SQUARED, SETS
from opencrate.analysis.layers.result import layer_measures
from opencrate.analysis.record.states import LayerStates, record
from opencrate.bench.timing import pair_ratios

QUANTITIES = {
    "l1 (and the check for NaN)": ("l1_per_token",),
    "l0": ("nonzero_fraction",),
    "R": ("rate",),
    "R^c": ("subspace_rate",),
    "R^c on unit-norm tokens": ("subspace_rate_unit_norm",),
    "Gini": ("gini",),
    "Hoyer": ("hoyer",),
    "effective and stable rank": ("effective_rank", "stable_rank"),
    "dead atoms": ("dead_atoms",),
}


def released_formulation(states: LayerStates) -> list[Tensor]:
    """R^c (B) of every layer through N x N determinants in the states' dtype, as the published tool has it."""
    found = []
    for step in states.steps():
        V = normalize(step.projected, dim=-1)
        N, p = V.shape[-2:]
        identity = torch.eye(N, dtype=V.dtype, device=V.device)
        found.append(0.5 * torch.logdet(identity + p / (N * RELEASED_EPS_SQUARED) * V @ V.mT).sum(-1))
    return found


def keys_of(quantities: tuple[str, ...]) -> tuple[str, ...]:
    """A quantity's keys at every half-step."""
    return tuple(key for key, measure in MEASURES.items() if measure.quantity in quantities)


def jobs(model: CrateForImageClassification, each: bool) -> dict[str, Callable[[Tensor, LayerStates], object]]:
    """What is timed, by name."""
    found = {
        "forward": lambda pixels, _: model(pixels),
        "forward, states recorded": lambda pixels, _: next(record(model, [pixels])),
    }
    plans = {"R, R^c, delta R, l0, l1": plan_measures([key for key in SETS["basic"] if "unit_norm" not in key])}
    plans |= {name: plan_measures(name) for name in SETS}
    if each:
        plans |= {name: plan_measures(keys_of(quantities)) for name, quantities in QUANTITIES.items()}
    found |= {name: lambda _, states, plan=plan: measure_states(states, plan) for name, plan in plans.items()}
    if each:
        found["released formulation, N x N"] = lambda _, states: released_formulation(states)
        found["the same by released_coding_rate"] = lambda _, states: [
            released_coding_rate(step.projected) for step in states.steps()
        ]
    return found


def ill_conditioned(states: LayerStates, decay: float) -> LayerStates:
    """The states times one matrix with singular values k^-decay."""
    width = states.layers[0].before.shape[-1]
    Q = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q
    M = Q * torch.arange(1.0, width + 1) ** -decay @ Q.mT
    made: dict[int, Tensor] = {}

    def times(Z: Tensor) -> Tensor:
        if id(Z) not in made:
            made[id(Z)] = Z @ M
        return made[id(Z)]

    steps = (
        replace(step, before=times(step.before), compressed=times(step.compressed), after=times(step.after))
        for step in states.steps()
    )
    return replace(states, layers=tuple(steps))


def time_all(model: CrateForImageClassification, a: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every job on every batch, after one warm-up batch."""
    work = jobs(model, a.each)
    times: dict[str, list[float]] = {name: [] for name in work}
    clock = time.process_time if a.cpu_time else time.perf_counter
    for index, pixels in enumerate(random_images(a, a.images + a.batch)):
        states = next(record(model, [pixels]))
        if a.decay:
            states = ill_conditioned(states, a.decay)
        for name, job in work.items():
            start = clock()
            job(pixels, states)
            if index:
                times[name].append((clock() - start) / len(pixels))
    return times


def random_images(a: argparse.Namespace, count: int) -> Iterator[Tensor]:
    """Batches of random pixels."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, a.batch):
        size = min(a.batch, count - start)
        yield torch.randn(size, 3, a.image_size, a.image_size, generator=generator)


def show_times(times: dict[str, list[float]]) -> None:
    forward = times["forward"]
    print(f"{'':34s} {'ms per image':>12s} {'of the forward':>15s}   over {len(forward)} batches")
    for name, seconds in times.items():
        ratios = pair_ratios(seconds, forward)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:34s} {1e3 * statistics.median(seconds):12.2f} {statistics.median(ratios):15.2f}   {spread}")


def show_memory(model: CrateForImageClassification, a: argparse.Namespace) -> None:
    """Largest resident size while many images stream through, above that of the loaded model."""
    before = resident_bytes()
    start = time.perf_counter()
    found = layer_measures(model, random_images(a, a.images), measures=a.measures)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{found.num_inputs} images, {found.num_layers} layers, measures={a.measures}, batches of {a.batch}: peak "
        f"{(peak - before) / 2**30:.2f} GiB above the loaded model ({before / 2**30:.2f} GiB), "
        f"{time.perf_counter() - start:.0f} s"
    )


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="a named size, see opencrate.list_sizes()")
    parser.add_argument("--layers", type=int, help="cut the model to this many layers")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--each", action="store_true", help="time each measure alone and the released formulation too")
    parser.add_argument("--decay", type=float, default=0.0, help="make the states ill-conditioned")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall clock: a busy machine")
    parser.add_argument("--memory", action="store_true", help="peak memory of streaming instead of times")
    parser.add_argument("--measures", default="full", choices=tuple(SETS), help="set of --memory")
    return parser.parse_args()


def main() -> None:
    a = parse()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    cut = {} if a.layers is None else {"num_hidden_layers": a.layers}
    model = CrateForImageClassification(CrateConfig.from_size(a.size, image_size=a.image_size, **cut)).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CRATE-{a.size}, float32")
    with torch.no_grad():
        if a.memory:
            show_memory(model, a)
        else:
            show_times(time_all(model, a))


if __name__ == "__main__":
    main()
