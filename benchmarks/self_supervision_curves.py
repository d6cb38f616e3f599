"""k-NN and linear probe against the steps of training without labels: docs/images/self_supervision_curves.png.

    python benchmarks/self_supervision_curves.py                 draws what benchmarks/gpu/results/ holds
    python benchmarks/self_supervision_curves.py --read RUN...   first reads the logs of these runs

A RUN is a directory named ssl-OBJECTIVE-MINUTES[-sSEED], as the lists in benchmarks/gpu/lists name them; its log is
enough, so it may be one that ends in ".partial".
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from opencrate.reports import figures

ROOT = Path(__file__).parents[1]
DATA = ROOT / "benchmarks" / "gpu" / "results" / "self-supervision-curves.csv"
IMAGE = ROOT / "docs" / "images" / "self_supervision_curves.png"
RUN = re.compile(r"ssl-([a-z]+)-(\d+)(?:-s(\d))?(?:\.partial)?")
OBJECTIVES = {"simclr": "SimCLR", "lejepa": "LeJEPA", "simdino": "SimDINO", "dino": "DINO"}
SCORES = {"knn": "k-NN (%)", "linear": "linear probe (%)"}
UNTRAINED = {"knn": 32.2, "linear": 39.5}
LABELS = 83.2
"""Of the same network trained on labels for 4,720 steps, on the same 5,000 held-out images."""
Row = dict[str, Any]


def read_logs(runs: list[Path]) -> Iterator[Row]:
    """The evaluations of every run; one row per evaluation, scores in percent."""
    for run in runs:
        named = RUN.fullmatch(run.name)
        if named is None:
            raise SystemExit(f"{run}: not a run of self-supervision; its name must be ssl-OBJECTIVE-MINUTES[-sSEED]")
        objective, minutes, seed = named.groups()
        for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found = entry.get("self_supervision", {})
            if "knn" in found:
                scores = {name: round(100 * found[name], 2) for name in SCORES}
                yield {"objective": objective, "minutes": minutes, "seed": seed or 0, "step": entry["step"], **scores}


def draw(rows: list[Row]) -> Figure:
    """The longest run of each objective as a line, the ends of the shorter ones as open markers."""
    figure, grid = figures.panels(1, 2, width=7.2, height=3.9, sharey=True)
    for axes, (score, title) in zip(grid, SCORES.items()):
        for index, (objective, name) in enumerate(OBJECTIVES.items()):
            runs = by_run([row for row in rows if row["objective"] == objective])
            longest = max(runs, key=lambda points: points[-1][0])
            look = {"color": figures.COLOURS[index], "marker": figures.MARKERS[index], "markersize": 4}
            axes.plot(*curve(longest, score), label=name, linewidth=1.4, **look)
            ends = [points[-1] for points in runs if points is not longest]
            look |= {"markerfacecolor": "white", "linestyle": "none", "markersize": 5.5}
            axes.plot([step for step, _ in ends], [scores[score] for _, scores in ends], **look)
        figures.rule(axes, y=UNTRAINED[score], line=":", label="untrained")
        figures.rule(axes, y=LABELS, line="--", label="trained on labels")
        axes.set_title(title, fontsize=9, loc="left")
    figures.finish(grid, "steps of 128 images", columns=6, whole=False, together=True)
    return figure


def by_run(rows: list[Row]) -> list[list[tuple[int, dict[str, float]]]]:
    """Points (step, scores) of every run, in the order of steps."""
    runs: dict[tuple[str, str], list[tuple[int, dict[str, float]]]] = {}
    for row in rows:
        scores = {name: float(row[name]) for name in SCORES}
        runs.setdefault((row["minutes"], row["seed"]), []).append((int(row["step"]), scores))
    return [sorted(points, key=lambda point: point[0]) for points in runs.values()]


def curve(points: list[tuple[int, dict[str, float]]], score: str) -> tuple[list[int], list[float]]:
    """Steps, and the score at each."""
    return [step for step, _ in points], [scores[score] for _, scores in points]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", metavar="RUN", type=Path, nargs="+", help="read the logs of these runs first")
    runs = parser.parse_args().read
    if runs:
        rows = list(read_logs(runs))
        with DATA.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["objective", "minutes", "seed", "step", *SCORES], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with DATA.open(newline="", encoding="utf-8") as file:
        draw(list(csv.DictReader(file))).savefig(IMAGE, dpi=150)


if __name__ == "__main__":
    main()
