"""The tables of docs/results/segmentation.md and the rows of results/segmentation.csv.

    python benchmarks/segmentation_page.py FOLDER

FOLDER holds what `segmentation_table.py table --csv` wrote: coco.csv, davis.csv, noise.csv (DAVIS with noise) and
size-64.csv and so on (DAVIS at other sizes), and layer-5.csv. Tables of the page are replaced where their markers
stand.
"""

import argparse
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, ROWS = ROOT / "docs/results/segmentation.md", ROOT / "results/segmentation.csv"
HARDWARE = "trained on one NVIDIA H200, beside other runs; judged on one core of an AMD EPYC"
OTHER_HARDWARE = {"ViT, LeJEPA": "trained and judged on one core of an AMD EPYC"}
DATE, COMMIT = "2026-11-27", "3e4bb69"
FIELDS = (
    *("subject", "model", "dataset", "metric", "value", "sd", "low", "high", "n"),
    *("hardware", "date", "commit", "command"),
)
HEADS = {
    "entries, best head": ("attention", "entries:0.6, best head"),
    "entries, head of other images": ("attention", "entries:0.6, head of other images"),
    "mass, best head": ("attention", "mass:0.6, best head"),
    "mass, head of other images": ("attention", "mass:0.6, head of other images"),
}
CORLOC = {f"CorLoc, {name}": ("object", f"CorLoc, {name}") for name in ("TokenCut", "MaskCut")}
J = {f"J, {name}": ("object", f"J, {name}") for name in ("TokenCut", "MaskCut")}
AP = {f"{kind} {name}": (kind, f"{name}, score 1") for kind in ("box", "mask") for name in ("AP50", "AP75", "AP")}
MAIN = {"mIoU, best head (mass)": HEADS["mass, best head"]}
MAIN |= {"mIoU, head of other images (mass)": HEADS["mass, head of other images"]}
PAIRS = {
    "coco": {
        "mIoU, best head (entries)": HEADS["entries, best head"],
        **MAIN,
        **CORLOC,
        "box AP50": AP["box AP50"],
        "mask AP50": AP["mask AP50"],
        "mask AP50, by cut": ("mask", "AP50, score by cut"),
    },
    "davis": {"mIoU, best head (entries)": HEADS["entries, best head"], **MAIN, **J},
}
COMPARED = (
    ("CRATE, labels", "ViT, labels"),
    ("CRATE, masked patches", "ViT, masked patches"),
    ("CRATE, LeJEPA", "ViT, LeJEPA"),
    ("CRATE, labels", "CRATE, untrained"),
    ("CRATE, LeJEPA", "CRATE, untrained"),
    ("CRATE, masked patches", "CRATE, untrained"),
    ("ViT, labels", "ViT, untrained"),
    ("CRATE, labels", "centred ellipse"),
    ("CRATE, labels", "smooth random maps, 4 heads"),
    ("ViT, labels", "centred ellipse"),
)
DATASETS = {"coco": "COCO train2017, 70 images", "davis": "DAVIS-2016 val, 20 sequences of 5 frames"}
FEW = "DAVIS-2016 val, first frame of 20 sequences"
UNITS = {"coco": "images", "davis": "sequences"}
Long = list[dict[str, str]]


@dataclass(frozen=True)
class Cell:
    """One number of the page, and of its row in the CSV."""

    model: str
    metric: str
    found: dict[str, str]

    def numbers(self) -> tuple[str, str, str]:
        """Value and bounds in per cent."""
        return _per_cent(self.found["mean"]), _per_cent(self.found["low"]), _per_cent(self.found["high"])


def _per_cent(text: str) -> str:
    value = f"{100 * float(text):.1f}" if text else ""
    return "0.0" if value == "-0.0" else value


def cells(
    rows: Long,
    columns: dict[str, tuple[str, str]],
    names: dict[tuple[str, str], str],
    noise: float = 0.0,
    role: str = "",
) -> Iterator[Cell]:
    """The numbers of some subjects, or pairs, by the words that the page has for them."""
    for (subject, minus), shown in names.items():
        for metric, measure in columns.items():
            for row in [*rows, *map(turned, rows)] if minus else rows:
                own = (row["subject"], row["minus"], row["table"], row["measure"], float(row["noise"]))
                seed = row["role"].startswith("seed ")
                if own == (subject, minus, *measure, noise) and (row["role"].startswith(role) if role else not seed):
                    yield Cell(shown, metric, row)


def turned(row: dict[str, str]) -> dict[str, str]:
    """A difference the other way round."""
    ends = {"mean": "mean", "low": "high", "high": "low"}
    numbers = {name: str(-float(row[other])) if row[other] else "" for name, other in ends.items()}
    return {**row, "subject": row["minus"], "minus": row["subject"], **numbers}


def markdown(found: list[Cell]) -> str:
    """Models in rows, measures in columns; several numbers of a cell with commas."""
    models, metrics = dict.fromkeys(one.model for one in found), dict.fromkeys(one.metric for one in found)
    lines = [["model", *metrics], ["---"] * (len(metrics) + 1)]
    for model in models:
        line = [model]
        for metric in metrics:
            of = [one.numbers() for one in found if (one.model, one.metric) == (model, metric)]
            shown = ", ".join(f"{value} [{low}, {high}]" if low else value for value, low, high in of)
            line.append(shown.replace("-", "−") or "–")
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(folder: Path) -> Iterator[tuple[str, str, str, list[Cell]]]:
    """Subject, data set, command and numbers of every table."""
    long = {file.stem: list(csv.DictReader(file.open(encoding="utf-8"))) for file in sorted(folder.glob("*.csv"))}
    for data in ("coco", "davis"):
        rows, command = (
            long[data],
            f"python benchmarks/segmentation_table.py table MODELS CACHE --data {data} PATH --size 128",
        )
        names = {(row["subject"], ""): row["subject"] for row in rows if not row["minus"]}
        single = {key: name for key, name in names.items() if "8 heads" not in name}
        yield f"{data}-attention", DATASETS[data], command, [*cells(rows, HEADS, names)]
        objects = {**CORLOC, **AP} if data == "coco" else {**J, **CORLOC}
        yield f"{data}-objects", DATASETS[data], command, [*cells(rows, objects, single)]
        pairs = {(one, other): f"{one} − {other}" for one, other in COMPARED}
        yield f"{data}-pairs", DATASETS[data], command, [*cells(rows, PAIRS[data], pairs)]
        both = {(name, ""): name for name in ("CRATE, labels", "ViT, labels")}
        yield f"{data}-seeds", DATASETS[data], command, [*cells(rows, PAIRS[data], both, role="seed ")]
    names = {(name, ""): name for name in ("CRATE, labels", "ViT, labels", "CRATE, LeJEPA")}
    command = "python benchmarks/segmentation_table.py table MODELS CACHE --data davis PATH --size 128 --limit 20"
    for subject, measure in (("noise-maskcut", J["J, MaskCut"]), ("noise-heads", HEADS["mass, best head"])):
        found = [
            one for s in (0, 10, 25, 50, 75) for one in cells(long.get("noise", []), {f"σ {s}": measure}, names, s)
        ]
        yield subject, FEW, f"{command} --noise 10,25,50,75", found
    found = []
    for size in sorted(int(name.removeprefix("size-")) for name in long if name.startswith("size-")):
        for name in ("CRATE, labels", "ViT, labels"):
            rows = long[f"size-{size}"]
            seeds = any(row["subject"] == name and row["role"].startswith("seed ") for row in rows)
            shown = f"{name}, {size} px{'' if seeds else ', seed 0'}"
            found += cells(rows, PAIRS["davis"], {(name, ""): shown})
    yield "sizes", FEW, command.replace("--size 128", "--size SIZE"), found
    yield "layers", FEW, f"{command} --layer LAYER", layers(long)


def layers(long: dict[str, Long]) -> list[Cell]:
    """The last two layers on the same frames."""
    found = []
    for name, file in (("layer 5", "layer-5"), ("layer 6, the last", "size-128")):
        subjects = [(one, "") for one in ("CRATE, labels", "ViT, labels")] + [("CRATE, labels", "ViT, labels")]
        shown = {key: f"{' − '.join(filter(None, key))}, {name}" for key in subjects}
        found += cells(long.get(file, []), PAIRS["davis"], shown)
    return found


def csv_rows(subject: str, dataset: str, command: str, found: list[Cell]) -> Iterator[dict[str, str]]:
    unit = UNITS["coco" if "COCO" in dataset else "davis"]
    for one in found:
        value, low, high = one.numbers()
        role = one.found["role"]
        count = role if role.startswith("seed ") else f"{one.found['count']} {unit}"
        hardware = OTHER_HARDWARE.get(one.model, HARDWARE)
        values = (subject, one.model, dataset, one.metric, value, "", low, high, count, hardware, DATE, COMMIT, command)
        yield dict(zip(FIELDS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    page, rows = PAGE.read_text(encoding="utf-8"), []
    for subject, dataset, command, found in tables(options.folder):
        marker = f"<!-- results/segmentation.csv: {subject} -->\n\n"
        parts = page.partition(marker)
        if not parts[1] or not found:
            print(f"{subject}: {'no numbers' if parts[1] else 'no marker on the page'}")
            continue
        page = parts[0] + marker + markdown(found) + "\n" + re.sub(r"\A(\|.*\n)*\n*", "", parts[2])
        rows += csv_rows(subject, dataset, command, found)
    PAGE.write_text(page, encoding="utf-8")
    with ROWS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
