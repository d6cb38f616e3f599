"""How often `opencrate doctor` is right: healthy models of many recipes and seeds, each also sabotaged in many ways.

    python benchmarks/doctor_study.py train   --pool POOL [--cifar10 data/cifar10]
    python benchmarks/doctor_study.py examine --pool POOL
    python benchmarks/doctor_study.py tables  --pool POOL

`train` makes the runs of `RUNS` that the pool lacks (minutes each on a CPU). `examine` checks every run as it is and
after each sabotage of `doctor_sabotage.py` that fits it, and appends one line per case to POOL/cases.jsonl; cases that
are there are not done again. `tables` writes benchmarks/doctor_study_*.csv from them, and the tables of
docs/doctor_checks.md and docs/results/doctor.md; `docs` writes those tables alone.

Runs of seed 0 are those that thresholds were chosen on ("chosen"); rates are reported on the others. Of text and
CIFAR-10 64 inputs are looked at and 128 scored; what a whole model scores on those stands for its stored score.

A case is judged in four settings, which differ in what the doctor is given: "run" everything; "labels" the model and
held-out images with labels (or text), nothing that its training wrote; "images" the same without labels; "weights" the
model alone.
"""

import argparse
import copy
import csv
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from doctor_sabotage import SABOTAGES, DoesNotApply, Patient, apply, write_score

from opencrate.analysis.doctor.diagnose import CHECKS, FAIL, FINDING, WARN, diagnose
from opencrate.analysis.doctor.inputs import Given, open_case
from opencrate.analysis.doctor.outputs import take
from opencrate.cli.main import main as opencrate

HERE = Path(__file__).parent
TABLE = HERE / "doctor_study.csv"
DOCS = [HERE.parent / "docs" / name for name in ("doctor_checks.md", "results/doctor.md")]
CHOSEN_SEEDS = (0,)
HEALTHY = "(healthy)"

WEIGHTS_ONLY = {
    *("finite", "fresh-parameters", "layer-scale", "few-values", "duplicate-atoms", "collapsed-subspaces"),
    *("correlated-subspaces", "dictionary-condition", "ista-step"),
}
NEEDS_RUN = {"stored-score", "generalisation-gap", "loss-curve"}
NEEDS_LABELS = {"class-collapse", "class-order", "above-chance"}
SETTINGS = {
    "run": set(CHECKS),
    "labels": set(CHECKS) - NEEDS_RUN,
    "images": set(CHECKS) - NEEDS_RUN - NEEDS_LABELS,
    "weights": WEIGHTS_ONLY,
}
"""Which checks each setting allows."""


@dataclass(frozen=True)
class Run:
    """One training: a recipe, a seed, and what is changed so that it takes a minute or a few."""

    recipe: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def num_inputs(self) -> tuple[int, int]:
        """How many inputs are looked at, and how many are scored: fewer where one takes longer."""
        return (256, 1024) if self.recipe.startswith("digits") else (64, 128)

    @property
    def name(self) -> str:
        """Of its folder in the pool."""
        return f"{self.recipe}-seed{self.seed}"

    @property
    def chosen(self) -> bool:
        """Whether thresholds were chosen on it."""
        return self.seed in CHOSEN_SEEDS


_SHORT = ("training.num_train_epochs=20",)
_DIGITS = {
    "digits": (),
    "digits-mae": ("training.num_train_epochs=30",),
    "digits-vit": (),
    **dict.fromkeys(("digits-attention", "digits-mlp", "digits-lambda0"), _SHORT),
    **dict.fromkeys(("digits-srr", "digits-both", "digits-attention-only"), _SHORT),
}
RUNS = (
    *(Run(recipe, seed, overrides) for seed in (0, 2) for recipe, overrides in _DIGITS.items()),
    *(Run("text-demo", seed, ("training.max_steps=300",)) for seed in (0, 2)),
    *(Run(recipe, 3, overrides) for recipe, overrides in _DIGITS.items()),
    *(Run("cifar10", seed, ("training.max_steps=500",)) for seed in (0, 2)),
)


def train(pool: Path, cifar10: str | None) -> None:
    """Train what the pool lacks."""
    for run in RUNS:
        folder, words = pool / run.name, [*run.overrides, f"training.seed={run.seed}"]
        if (folder / "metrics.json").exists() or (run.recipe.startswith("cifar10") and cifar10 is None):
            continue
        if run.recipe.startswith("cifar10"):
            words.append(f"data.path={cifar10}")
        start = time.time()
        code = opencrate(["train", run.recipe, *words, "--no-report", "--output", str(folder)])
        print(f"{run.name}: exit code {code}, {time.time() - start:.0f} s", flush=True)


# --- Examining -----------------------------------------------------------------------------------------------------


def examine(pool: Path, only: str, healthy: bool) -> None:
    """Judge every case that is not judged yet: first the healthy runs, then the sabotaged ones."""
    done = {(row["run"], row["sabotage"]) for row in read_cases(pool)}
    there = [run for run in RUNS if (pool / run.name / "metrics.json").exists() and only in run.name]
    with (pool / "cases.jsonl").open("a") as file:
        sabotaged = [] if healthy else [(run, list(SABOTAGES)) for run in there]
        for run, wanted in [(run, [HEALTHY]) for run in there] + sabotaged:
            names = [name for name in wanted if (run.name, name) not in done]
            if not names:
                continue
            start = time.time()
            for row in _examine_run(pool, run, names):
                file.write(json.dumps(row) + "\n")
                file.flush()
            print(f"{run.name}: {len(names)} cases, {time.time() - start:.0f} s", flush=True)


def _examine_run(pool: Path, run: Run, names: Iterable[str]) -> Iterator[dict]:
    patient = open_patient(pool / run.name, *run.num_inputs)
    others = [pool / one.name for one in RUNS if one.recipe == run.recipe and one.seed != run.seed]
    finished = [folder for folder in others if (folder / "metrics.json").exists()]
    if finished:
        patient.peer = open_case(Given(str(finished[0]))).model
    for name in names:
        sick = copy.deepcopy(patient)
        row = {"run": run.name, "chosen": run.chosen, "sabotage": name}
        try:
            if name != HEALTHY:
                apply(name, sick)
        except DoesNotApply:
            yield row | {"verdicts": {}}
            continue
        found = diagnose(sick.model, **sick.options())
        yield row | {
            "verdicts": {one.check: one.verdict for one in found.findings},
            "evidence": {one.check: one.evidence for one in found.findings if one.verdict in (WARN, FAIL)},
            "values": found.to_dict()["findings"] if name == HEALTHY else None,
        }


def open_patient(folder: Path, num_inputs: int = 256, num_scored: int = 1024) -> Patient:
    """A run with its inputs read once, so that a sabotage can change them; of a part, the score is measured anew."""
    case = open_case(Given(str(folder)))
    parts = {}
    for name, count in (("batches", num_inputs), ("train_batches", num_inputs), ("scored", num_scored)):
        source = case.inputs.get(name, case.inputs["batches"] if name == "scored" else None)
        parts[name] = None if source is None else take(source, count)[0]
    patient = Patient(case.model, stored=case.inputs.get("stored"), log=case.inputs.get("log"), **parts)
    if len((case.inputs.get("scored") or case.inputs["batches"]).dataset) > num_scored:
        write_score(patient)
    return patient


def read_cases(pool: Path) -> list[dict]:
    """Every case judged so far."""
    path = pool / "cases.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- Tables --------------------------------------------------------------------------------------------------------


def detected(case: dict, setting: str, verdicts: tuple[str, ...] = (FAIL,)) -> set[str]:
    """The checks that a setting allows and that came to one of the verdicts."""
    return {check for check, verdict in case["verdicts"].items() if verdict in verdicts} & SETTINGS[setting]


def rates(cases: list[dict]) -> list[dict[str, str]]:
    """One row per sabotage: on which runs, how often it fails in each setting, and what found it."""
    rows = []
    for name in (HEALTHY, *SABOTAGES):
        group = [case for case in cases if case["sabotage"] == name]
        if not group:
            continue
        found = [check for case in group for check in detected(case, "run")]
        ranked = sorted(set(found), key=lambda check: (-found.count(check), list(CHECKS).index(check)))
        row = {"sabotage": name, "what": "nothing: healthy runs" if name == HEALTHY else SABOTAGES[name][0]}
        row["runs"] = str(len(group))
        row |= {setting: str(sum(bool(detected(case, setting)) for case in group)) for setting in SETTINGS}
        rows.append(row | {"found by": " ".join(ranked[:4])})
    return rows


def run_rates(cases: list[dict]) -> list[dict[str, str]]:
    """One row per run: what it fails or warns as it is, how many sabotages fit, and how many fail in each setting."""
    rows = []
    for name in dict.fromkeys(case["run"] for case in cases):
        group = [case for case in cases if case["run"] == name]
        healthy = [case for case in group if case["sabotage"] == HEALTHY]
        sick = [case for case in group if case["sabotage"] != HEALTHY]
        alarms = sorted(check for case in healthy for check in detected(case, "run", (WARN, FAIL)))
        row = {"model": name, "thresholds chosen on it": "yes" if group[0]["chosen"] else "no"}
        row |= {"healthy: fails or warnings": " ".join(alarms) or "none", "sabotages": str(len(sick))}
        rows.append(row | {setting: str(sum(bool(detected(case, setting)) for case in sick)) for setting in SETTINGS})
    return sorted(rows, key=lambda row: (row["thresholds chosen on it"], row["model"]))


def check_rates(cases: list[dict]) -> list[dict[str, str]]:
    """One row per check: how many healthy runs it fails, warns or notes, and how many sabotages it fails."""
    rows = []
    for check in CHECKS:
        able = [case for case in cases if case["verdicts"][check] != "not checked"]
        healthy = [case["verdicts"][check] for case in able if case["sabotage"] == HEALTHY]
        sick = [case["verdicts"][check] for case in able if case["sabotage"] != HEALTHY]
        row = {"check": f"`{check}`", "healthy runs": str(len(healthy))}
        row |= {f"of them {verdict}": str(healthy.count(verdict)) for verdict in (FINDING, WARN, FAIL)}
        row |= {"sabotaged runs": str(len(sick))}
        rows.append(row | {f"{verdict} there": str(sick.count(verdict)) for verdict in (WARN, FAIL)})
    return rows


def write_tables(pool: Path) -> None:
    """The CSV beside this file, and the tables in the docs between their marks."""
    cases = [case for case in read_cases(pool) if case["verdicts"]]
    others = [case for case in cases if not case["chosen"]]
    found = {"runs": run_rates(cases), "sabotages": rates(others), "checks": check_rates(others)}
    for name, rows in found.items():
        with TABLE.with_name(f"doctor_study_{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    write_docs()


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of "runs", "sabotages" or "checks", as they were committed."""
    with TABLE.with_name(f"doctor_study_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(rows: list[dict[str, str]]) -> str:
    """A table of markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def checks_table() -> list[dict[str, str]]:
    """What every check looks at, from the code."""
    return [
        {
            "check": f"`{name}`",
            "looks at": check.what,
            "threshold": check.threshold,
            "why there": check.reason,
            "what to do": check.advice,
        }
        for name, check in CHECKS.items()
    ]


def docs_with_tables(text: str) -> str:
    """The document with its generated tables put between their marks."""
    tables = {
        "checks": checks_table(),
        "runs": read_table("runs"),
        "rates of checks": read_table("checks"),
        "rates of sabotages": read_table("sabotages"),
    }
    for name, rows in tables.items():
        start, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        head, found, rest = text.partition(start)
        if found:
            text = f"{head}{start}\n\n{markdown(rows)}\n\n{end}{rest.partition(end)[2]}"
    return text


def write_docs() -> None:
    """Renew the tables of the documents."""
    for path in DOCS:
        path.write_text(docs_with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "examine", "tables", "docs"))
    parser.add_argument("--pool", type=Path, default=Path("runs/doctor-pool"))
    parser.add_argument("--cifar10", help="folder of CIFAR-10; its runs are left out without it")
    parser.add_argument("--only", default="", help="examine runs with this in their name")
    parser.add_argument("--healthy", action="store_true", help="examine runs as they are, no sabotages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step == "train":
        train(options.pool, options.cifar10)
    elif options.step == "examine":
        examine(options.pool, options.only, options.healthy)
    elif options.step == "tables":
        write_tables(options.pool)
    else:
        write_docs()


if __name__ == "__main__":
    main()
