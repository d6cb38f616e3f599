"""The tables of docs/results say what results/*.csv say, number by number."""

import csv
import re
from decimal import Decimal
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy.stats import t

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))
FILES = sorted((ROOT / "results").glob("*.csv"))
COLUMNS = [
    "subject",
    "model",
    "dataset",
    "metric",
    "value",
    "sd",
    "low",
    "high",
    "n",
    "hardware",
    "date",
    "commit",
    "command",
]
TABLE = re.compile(r"<!-- (results/[\w-]+\.csv): ([\w-]+) -->\n\n((?:\|.*\n)+)")
NUMBER = r"[+-]?\d+(?:\.\d+)?(?:e-\d+)?"
SUMMARY = re.compile(rf"({NUMBER})(?: ± ({NUMBER}))?(?: \[({NUMBER}), ({NUMBER})\])?")
Numbers = tuple[str, str, str, str]  # value, standard deviation, low and high end, as written; "" where there is none


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ROWS = [row for path in FILES for row in read(path)]


def numbers(row: dict[str, str]) -> Numbers:
    return row["value"], row["sd"], row["low"], row["high"]


def cell_numbers(cell: str) -> list[Numbers]:
    """The numbers of a cell such as "1.0, 1.2: **1.1 ± 0.1** [0.9, 1.3]" or "3–5"; none where it is words."""
    text = re.sub(r"(?<=\d),(?=\d)|[*†×+]", "", cell.replace("−", "-")).strip()
    if not re.fullmatch(r"[-\d.,:±\[\]–e ]*\d[-\d.,:±\[\]–e ]*", text):
        return []
    each, _, last = text.rpartition(": ")
    if "–" in last:
        low, high = last.split("–")
        return [("", "", low, high)]
    parts = [*filter(None, each.split(", ")), *([last] if "[" in last else last.split(", "))]
    return [tuple(part or "" for part in SUMMARY.fullmatch(text).groups()) for text in parts]


def markdown_rows(body: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of markdown."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in body.strip().splitlines()]
    return lines[0], lines[2:]


def plain(cell: str) -> str:
    return re.sub(r"[`*†]", "", cell).strip()


def page_numbers(header: list[str], rows: list[list[str]]) -> dict[tuple[str, str], list[Numbers]]:
    """Numbers by the first cell of their row and the head of their column; the column of seeds is a condition."""
    found = {}
    for row in rows:
        assert len(row) == len(header), row
        for name, cell in zip(header[1:], row[1:]):
            if name != "seeds" and cell_numbers(cell):
                assert (plain(row[0]), plain(name)) not in found, row[0]
                found[plain(row[0]), plain(name)] = cell_numbers(cell)
    return found


def csv_numbers(rows: list[dict[str, str]]) -> dict[tuple[str, str], list[Numbers]]:
    found: dict[tuple[str, str], list[Numbers]] = {}
    for row in rows:
        found.setdefault((row["model"], row["metric"]), []).append(numbers(row))
    return found


TABLES = [(page, *match) for page in PAGES for match in TABLE.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "file", "subject", "body"), TABLES, ids=[f"{p.stem}-{s}" for p, _, s, _ in TABLES])
def test_the_table_is_that_of_the_csv(page, file, subject, body):
    rows = [row for row in read(ROOT / file) if row["subject"] == subject]
    assert rows and page_numbers(*markdown_rows(body)) == csv_numbers(rows)


def test_every_row_is_on_a_page_and_has_its_conditions():
    assert {(f"results/{path.name}", row["subject"]) for path in FILES for row in read(path)} == {
        (file, subject) for _, file, subject, _ in TABLES
    }
    for row in ROWS:
        assert list(row) == COLUMNS and row["hardware"] and row["command"] and row["dataset"], row


def of_seeds() -> list[tuple[dict[str, str], list[float]]]:
    """Every row that sums up seeds, with the values of these seeds where the same cell or its neighbour has them."""
    found, seeds = [], []
    for row in ROWS:
        if re.fullmatch(r"seed \d", row["n"]) and row["value"]:
            seeds = [*(seeds if row["n"] != "seed 0" else []), float(row["value"])]
        elif row["sd"] and row["low"] and len(seeds) > 1 and row["n"] == f"seeds 0-{len(seeds) - 1}":
            found.append((row, seeds))
            seeds = []
    return found


def test_means_and_intervals_are_those_of_the_seeds():
    """Within rounding: some of the seeds' values were rounded before they were written down."""
    assert len(of_seeds()) >= 10
    for row, values in of_seeds():
        half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        expected = (mean(values), stdev(values), mean(values) - half, mean(values) + half)
        for text, number in zip(numbers(row), expected):
            assert abs(float(text) - number) < 1.1 * 10.0 ** Decimal(text).as_tuple().exponent, row


def test_the_overview_repeats_numbers_of_the_pages():
    """Each as it stands in the CSV, or rounded to the digits shown."""
    body = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition("<!-- overview -->\n\n")[2]
    header, rows = markdown_rows(body.partition("\n\n")[0])
    shown = page_numbers(header, rows)
    assert len(shown) >= 20
    for place, [found] in shown.items():
        digits = [Decimal(text) if text else None for text in found]
        assert any(
            all(
                one is None or (text and abs(Decimal(text).quantize(one) - one) == 0)
                for one, text in zip(digits, numbers(row))
            )
            for row in ROWS
        ), (place, found)


def test_the_curves_end_where_the_table_says():
    """docs/images/self_supervision_curves.png is drawn from the same runs."""
    rows = read(ROOT / "benchmarks" / "gpu" / "results" / "self-supervision-curves.csv")
    ends = {(row["objective"], row["minutes"]): row for row in rows if row["seed"] == "0"}  # in the order of steps
    table = [row for row in ROWS if row["subject"] == "cifar10-stem-curve"]
    assert len(table) == 2 * len(ends) == 22
    for row in table:
        name, minutes = re.fullmatch(r"(k-NN|linear), (\d+) min \(%\)", row["metric"]).groups()
        found = ends[row["model"], minutes][{"k-NN": "knn", "linear": "linear"}[name]]
        assert abs(Decimal(found) - Decimal(row["value"])) <= Decimal("0.05"), row


def test_the_doctors_counts():
    sabotages = read(ROOT / "benchmarks" / "doctor_study_sabotages.csv")[1:]
    cases, run, labels, images, weights = (
        sum(int(row[name]) for row in sabotages) for name in ("runs", "run", "labels", "images", "weights")
    )
    assert (cases, run, labels, images, weights) == (221, 219, 190, 143, 117)
    for page in ("docs/doctor.md", "docs/results/doctor.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(re.search(rf"\b{count}\b", text) for count in (cases, run, labels, images, weights)), page
