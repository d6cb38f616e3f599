"""Time and peak memory of MaskCut's three masks, without the model's forward pass.

    OMP_NUM_THREADS=2 python benchmarks/maskcut_cost.py
    OMP_NUM_THREADS=2 python benchmarks/maskcut_cost.py --model runs/photos --image cat.jpg --size 480

Random smooth features are the worst case for memory: half of all pairs of patches are alike. 60 x 60 patches are 480
pixels at patch 8, 30 x 30 at patch 16. Time is the median of `--repeats` calls; memory the peak of the process above
what it held before the call.
"""

import argparse
import statistics
import time

from opencrate import open_saved
from opencrate.analysis.masks.evaluate import ViewOptions, viewer
from opencrate.analysis.segmentation.arrays import Array, Grid
from opencrate.analysis.segmentation.floors import smooth_random_features
from opencrate.analysis.segmentation.maskcut import maskcut
from opencrate.bench.memory import peak_above
from opencrate.image_processing_crate import read_picture


def line(name: str, features: Array, grid: Grid, repeats: int) -> str:
    """What the masks of these features cost."""
    peak = peak_above(lambda: maskcut(features, grid))  # first, so that nothing is held from earlier calls
    cuts, seconds = maskcut(features, grid), []
    for _ in range(repeats):
        start = time.perf_counter()
        maskcut(features, grid)
        seconds.append(time.perf_counter() - start)
    shape = f"{grid[0]} x {grid[1]} = {len(features):,} patches of {features.shape[1]}"
    return f"{name}: {shape}: {len(cuts)} masks, {statistics.median(seconds):.3f} s, {peak / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="run or saved folder, with --image")
    parser.add_argument("--image", nargs="+", default=[])
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not options.model:
        for side in (30, 60):
            features = smooth_random_features((side, side), 0, width=128).astype("float32")
            print(line("random", features, (side, side), options.repeats))
        return
    saved = open_saved(options.model)
    view = viewer(saved, saved.model, ViewOptions(size=options.size, square=True))
    for image in options.image:
        found = view(read_picture(image).convert("RGB"))
        print(line(image, found.features, found.grid, options.repeats))


if __name__ == "__main__":
    main()
