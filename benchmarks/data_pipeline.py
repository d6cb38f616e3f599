"""Speed of the training data pipeline on one core: decode, augment, collate, apart and together.

    python benchmarks/data_pipeline.py [--data PATH] [--images 256] [--repeats 5] [--gpu-rate R]

At 224 pixels the images are JPEGs of 500x375 (ImageNet's usual size), at 32 pixels of 32x32, made here from
smoothed noise; `--data` takes a folder, parquet file or any other source of the library instead and runs it at both
sizes. Every figure is images/s of one process with one thread, the median of the repeats.

- decode: bytes to pixels. augment: pixels to the augmented, normalised (and erased) tensor. collate: a list of
  tensors to a batch.
- from files: all of them, as the loader does for a split that does not fit in memory. This is the training rate that
  one core of loader feeds. from memory: without decoding, as for a split that is kept.
- paper: resized crop and flip. heavy: the same with RandAugment(2, 9) and erasing 0.25. small: padded crop and flip,
  for 32 pixels.

`--gpu-rate R` (images/s of a training step measured on your GPU) prints how many loader cores keep it busy.
"""

import argparse
import io
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import default_collate

from opencrate.bench.timing import in_turns
from opencrate.data.draws import DrawSampler
from opencrate.data.images.labelled import cells_of, labelled_dataset
from opencrate.data.images.sources import load_images
from opencrate.data.images.tensors import ImageTransform
from opencrate.data.images.training import TrainingImages
from opencrate.data.options import Augmentation, ImageData
from opencrate.store.build import build_processor

BATCH = 64
MADE = {224: (375, 500), 32: (32, 32)}
RECIPES = {
    "paper": Augmentation(crop="resized", flip=0.5),
    "heavy": Augmentation(crop="resized", flip=0.5, randaugment_ops=2, randaugment_magnitude=9, erasing=0.25),
    "small": Augmentation(crop="padded", flip=0.5),
}
UNLIMITED = 1 << 40


def made_images(size: tuple[int, int], count: int) -> Dataset:
    """JPEGs (quality 90) of smoothed noise: about the bytes per pixel of photographs."""
    rng, cells = np.random.default_rng(0), []
    for _ in range(count):
        coarse = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (*size, 3))
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        cells.append({"path": None, "bytes": out.getvalue()})
    return labelled_dataset(cells, [number % 2 for number in range(count)], ["even", "odd"], "benchmark")


def rate(function: Callable[[], object], count: int, repeats: int) -> float:
    """Images/s of a function that handles `count` of them: the median, after one call to warm up."""
    return count / statistics.median(in_turns({"it": function}, repeats)["it"])


def measure(dataset: Dataset, size: int, name: str, repeats: int) -> dict[str, float]:
    """Images/s of each stage of one recipe at one size."""
    transform = ImageTransform(build_processor(ImageData(image_size=size)), 3)
    augmentation, count = RECIPES[name], len(dataset)
    stored = TrainingImages(dataset, transform, augmentation, limit=0)
    kept = TrainingImages(dataset, transform, augmentation, limit=UNLIMITED)
    draws = list(DrawSampler(count, 0, BATCH, augmentation))
    batches = [draws[start : start + BATCH] for start in range(0, count, BATCH)]
    items = [kept.__getitems__(batch) for batch in batches]

    def decode() -> None:
        for batch in batches:
            for cell in cells_of(dataset, [draw.index for draw in batch]):
                image = transform.read(cell)
                if augmentation.crop != "resized":
                    transform.pixels(image)

    stages = {
        "decode": decode,
        "augment": lambda: [kept.__getitems__(batch) for batch in batches],
        "collate": lambda: [default_collate(some) for some in items],
        "from files": lambda: [default_collate(stored.__getitems__(batch)) for batch in batches],
        "from memory": lambda: [default_collate(kept.__getitems__(batch)) for batch in batches],
    }
    return {stage: rate(function, count, repeats) for stage, function in stages.items()}


def main() -> None:
    """Parse arguments, measure, print one line per (size, recipe)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a source of images; without it they are made here")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu-rate", type=float, help="images/s of a training step on your GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = load_images(ImageData(path=str(arguments.data))).train if arguments.data else None
    print(f"one process, one thread, torch {torch.__version__}; {arguments.data or 'images made here'}; images/s")
    for size, names in ((224, ("paper", "heavy")), (32, ("small", "paper", "heavy"))):
        dataset = made_images(MADE[size], arguments.images) if given is None else given
        dataset = dataset.select(range(min(arguments.images, len(dataset))))
        for name in names:
            rates = measure(dataset, size, name, arguments.repeats)
            stages = "   ".join(f"{stage} {value:7.0f}" for stage, value in rates.items())
            print(f"{size:3d} px {name}: {stages}", flush=True)
            fed = rates["from files"]
            line = f"       one core feeds a GPU that trains at {fed:.0f} images/s from files"
            if arguments.gpu_rate:
                cores = math.ceil(arguments.gpu_rate / fed)
                line += f"; {arguments.gpu_rate:.0f} images/s need {cores} core{'s' if cores > 1 else ''}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
