"""Masks of many models, of several seeds each, on COCO and DAVIS, beside their floors; the tables of the results page.

    python benchmarks/segmentation_table.py score MODELS CACHE --data davis davis.parquet --size 224
    python benchmarks/segmentation_table.py table MODELS CACHE --data davis davis.parquet --size 224 --csv davis.csv

`opencrate evaluate-segmentation` takes every model for itself. Here the seeds of one form are averaged image by image,
so that a paired interval between two forms is over images and not over one seed of each. MODELS is a text file:

    CRATE, labels = runs/labels-s0 runs/labels-s1
    CRATE, untrained = start:runs/labels-s0 start:runs/labels-s1

"start:" takes a run before its first step, whitened patches and all. `score` keeps the numbers of every image in CACHE
and goes on where it stopped; `table` prints all measures and pairs, and writes the rows as CSV.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from opencrate import open_saved
from opencrate.analysis.masks.evaluate import ELLIPSE, RANDOM, WHOLE, ViewOptions, viewer
from opencrate.analysis.segmentation.average_precision import THRESHOLDS, ImageMatches
from opencrate.analysis.segmentation.evaluation import (
    FLOOR,
    MODEL,
    Measure,
    SegmentationScores,
    Subject,
    chosen_subject,
    subject_of,
    summarise,
)
from opencrate.analysis.segmentation.floors import (
    SHARES,
    centred_ellipse,
    smooth_random_features,
    smooth_random_maps,
    whole_image,
)
from opencrate.analysis.segmentation.noise import noisy_picture
from opencrate.analysis.segmentation.scores import DEFAULTS, ImageScores, Views, score_mask, score_views
from opencrate.data.segmentation.load import load_masks
from opencrate.data.segmentation.truth import MaskedImage, MaskedImages

START = "start:"
Scorer = Callable[[int, MaskedImage], ImageScores]


def read_list(path: str) -> dict[str, list[str]]:
    """The runs of every name of a list, in its order."""
    found = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, equals, runs = line.partition("=")
        if equals and not line.startswith("#"):
            found[name.strip()] = runs.split()
    return found


def plain_scores(one: ImageScores) -> dict:
    """The numbers of an image as JSON has them; NaN is null."""

    def numbers(values: Mapping[str, float]) -> dict:
        return {key: None if np.isnan(value) else float(value) for key, value in values.items()}

    return {
        "heads": [[*key, np.asarray(c).tolist(), np.asarray(ious).tolist()] for key, (c, ious) in one.heads.items()],
        "corloc": numbers(one.corloc),
        "jaccard": numbers(one.jaccard),
        "matches": [
            [*key, m.scores.tolist(), m.hits.astype(int).tolist(), m.ignored.astype(int).tolist(), m.instances]
            for key, m in one.matches.items()
        ],
    }


def scores_of(line: dict, heads: int) -> ImageScores:
    """The reverse; `heads` gives images without any class their shape."""
    numbers = {
        name: {key: np.nan if value is None else value for key, value in line[name].items()}
        for name in ("corloc", "jaccard")
    }
    return ImageScores(
        {(rule, place): (np.array(c), np.array(ious).reshape(-1, heads)) for rule, place, c, ious in line["heads"]},
        numbers["corloc"],
        numbers["jaccard"],
        {
            (kind, ranking): ImageMatches(
                np.array(scores),
                np.array(hits, dtype=bool).reshape(len(THRESHOLDS), len(scores)),
                np.array(ignored, dtype=bool).reshape(len(THRESHOLDS), len(scores)),
                instances,
            )
            for kind, ranking, scores, hits, ignored, instances in line["matches"]
        },
    )


def model_scorer(source: str, size: int, layer: int, sigma: float) -> Scorer:
    """Scores of a run, or of its start, on images with noise of sigma."""
    saved = open_saved(source.removeprefix(START))
    model = saved.untrained() if source.startswith(START) else saved.model
    view = viewer(saved, model, ViewOptions(size=size, layer=layer))

    def score(index: int, truth: MaskedImage) -> ImageScores:
        truth = replace(truth, picture=noisy_picture(truth.picture, sigma, index))
        return score_views(view(truth.picture), truth)

    return score


def floor_scorers(heads: list[int], grid_of: Callable[[MaskedImage], tuple[int, int]]) -> dict[str, Scorer]:
    """Those of the floors: every size of the ellipse, and random maps with each number of heads."""

    def drawn(make, index: int, truth: MaskedImage) -> ImageScores:
        return score_mask(make(truth.size), make(grid_of(truth)), truth)

    def random(count: int, index: int, truth: MaskedImage) -> ImageScores:
        grid = grid_of(truth)
        maps, features = smooth_random_maps(count, grid, index), smooth_random_features(grid, index)
        return score_views(Views(features, maps, grid), truth)

    found: dict[str, Scorer] = {WHOLE: partial(drawn, whole_image)}
    found |= {f"{ELLIPSE} {share:g}": partial(drawn, partial(centred_ellipse, share=share)) for share in SHARES}
    return found | {f"{RANDOM}, {count} heads": partial(random, count) for count in heads}


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{re.sub('[^A-Za-z0-9.]+', '-', name).strip('-')}.jsonl"


def score_all(name: str, scorer: Callable[[], Scorer], data: MaskedImages, folder: Path) -> None:
    """Scores of every image that the file of this name does not have yet, one line each."""
    path = file_of(folder, name)
    done = lines_of(path)
    if done == len(data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    score = scorer()
    with path.open("a", encoding="utf-8") as file:
        for index in range(done, len(data)):
            file.write(json.dumps(plain_scores(score(index, data[index]))) + "\n")
            file.flush()
    print(f"{folder.name}: {name}", flush=True)


def read_scores(name: str, folder: Path, count: int) -> list[ImageScores]:
    """Those of all images."""
    path = file_of(folder, name)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    if len(lines) != count:
        raise SystemExit(f"{path}: {len(lines)} of {count} images; run `score` first")
    heads = max((np.shape(ious)[1] for line in lines for *_, ious in line["heads"] if ious), default=1)
    return [scores_of(line, heads) for line in lines]


def subjects_of(options: argparse.Namespace, data: MaskedImages, folder: Path) -> list[Subject]:
    """Every name of the list, its seeds averaged image by image, then the floors, then the names on noisy images."""
    given = {"groups": data.groups, "one_object": data.one_object}
    read = partial(read_scores, folder=folder, count=len(data))
    names = finished(options, folder, len(data))
    found = [subject_of(name, MODEL, [read(run) for run in runs], **given) for name, runs in names.items()]
    ellipses = [read(f"{ELLIPSE} {share:g}") for share in SHARES]
    found += [subject_of(WHOLE, FLOOR, [read(WHOLE)], **given), chosen_subject(ELLIPSE, ellipses, **given)]
    for count in options.heads:
        found.append(subject_of(f"{RANDOM}, {count} heads", FLOOR, [read(f"{RANDOM}, {count} heads")], **given))
    for sigma in options.noise:
        for name, runs in finished(options, folder, len(data), sigma).items():
            noisy = [read(run) for run in runs]
            found.append(subject_of(name, MODEL, noisy, sigma=sigma, **given))
    return found


def finished(options: argparse.Namespace, folder: Path, count: int, sigma: float = 0.0) -> dict[str, list[str]]:
    """The files of the names of the list whose first seeds are scored; the others are named."""
    found = {}
    for name, runs in read_list(options.models).items():
        files = [one for one in of(name, runs, sigma) if lines_of(file_of(folder, one)) == count]
        if chosen(name, options) and files:
            found[name] = files
        if chosen(name, options) and len(files) < len(runs):
            print(f"{name}{f', noise {sigma:g}' if sigma else ''}: {len(files)} of {len(runs)} runs are scored")
    return found


def lines_of(path: Path) -> int:
    return sum(1 for _ in path.open(encoding="utf-8")) if path.is_file() else 0


def of(name: str, runs: list[str], sigma: float = 0.0) -> Iterator[str]:
    """The names of the files of a form, one for each seed."""
    return (f"{name}.{seed}" + (f".noise{sigma:g}" if sigma else "") for seed in range(len(runs)))


def chosen(name: str, options: argparse.Namespace) -> bool:
    return not options.only or name in options.only


def score(options: argparse.Namespace, data: MaskedImages, folder: Path) -> None:
    """Fill the cache: for every seed in turn all forms, then the floors, then noise."""
    names = {name: runs for name, runs in read_list(options.models).items() if chosen(name, options)}
    jobs = []
    for sigma in (0.0, *options.noise):
        for seed in range(max(map(len, names.values()))):
            for name, runs in names.items():
                if seed < len(runs):
                    jobs.append((list(of(name, runs, sigma))[seed], runs[seed], sigma))
    saved = open_saved(jobs[0][1].removeprefix(START))
    view = viewer(saved, saved.model, ViewOptions(size=options.size))
    floors = floor_scorers(options.heads, lambda truth: view(truth.picture).grid)
    for place, (name, run, sigma) in enumerate(jobs):
        if not Path(run.removeprefix(START)).is_dir():
            print(f"{run}: not there yet", flush=True)
            continue
        score_all(name, partial(model_scorer, run, options.size, options.layer, sigma), data, folder)
        if not place:
            for floor, scorer in floors.items():
                score_all(floor, lambda scorer=scorer: scorer, data, folder)


def table(options: argparse.Namespace, data: MaskedImages, folder: Path) -> None:
    """Print every measure of every subject, and the pairs; write all as CSV."""
    subjects = subjects_of(options, data, folder)
    intervals, differences = summarise(subjects, data.groups)
    units = tuple(dict.fromkeys(data.groups))
    found = SegmentationScores(
        data.kind, data.source, len(data), units, (), vars(DEFAULTS), tuple(subjects), intervals, differences
    )
    rows = found.rows()
    seeds = [
        row
        for name, files in finished(options, folder, len(data)).items()
        if len(files) > 1
        for row in seed_rows(name, files, data, folder)
    ]
    for row in rows:
        print(_line(row))
    if options.csv:
        with Path(options.csv).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows + seeds)


def seed_rows(name: str, files: list[str], data: MaskedImages, folder: Path) -> Iterator[dict]:
    """One row for every seed and measure, without its interval; role "seed 0" and so on."""
    for seed, file in enumerate(files):
        run = read_scores(file, folder, len(data))
        subject = subject_of(name, MODEL, [run], data.groups, one_object=data.one_object)
        intervals, _ = summarise([subject], data.groups)
        for (_, measure), one in intervals.items():
            yield _plain_row(name, f"seed {seed}", measure, float(one.mean), one.count)


def _plain_row(name: str, role: str, measure: Measure, mean: float, count: int) -> dict:
    shown = {"subject": name, "minus": "", "role": role, "noise": 0.0, "table": measure[0], "measure": measure[1]}
    return {**shown, "mean": mean, "low": "", "high": "", "count": count}


def _line(row: dict) -> str:
    name = f"{row['subject']} − {row['minus']}" if row["minus"] else row["subject"]
    noise = f" (noise {row['noise']:g})" if row["noise"] else ""
    mean, low, high = (100 * row[part] for part in ("mean", "low", "high"))
    return f"{row['table']}, {row['measure']}: {name}{noise}: {mean:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("score", "table"))
    parser.add_argument("models", help="the list")
    parser.add_argument("cache", help="folder of the numbers of every image")
    parser.add_argument("--data", nargs=2, required=True, metavar=("LAYOUT", "PATH"))
    parser.add_argument("--size", type=int, default=224, help="pixels of the shorter side")
    parser.add_argument("--layer", type=int, default=-1, help="from 1, or from the end")
    parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("--noise", type=lambda text: [float(part) for part in text.split(",")], default=[])
    parser.add_argument("--heads", type=lambda text: [int(part) for part in text.split(",")], default=[4])
    parser.add_argument("--only", action="append", help="of these names alone")
    parser.add_argument("--csv", help="file of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    layout, path = options.data
    data = load_masks(layout, path, limit=options.limit)
    part = f"-first{options.limit}" if options.limit else ""
    part += f"-layer{options.layer}" if options.layer != -1 else ""
    folder = Path(options.cache) / f"{layout}-{options.size}{part}"
    {"score": score, "table": table}[options.what](options, data, folder)


if __name__ == "__main__":
    main()
