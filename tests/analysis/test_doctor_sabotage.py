"""Every kind of damage of `benchmarks/doctor_sabotage.py` on small trained models: the doctor sees it, and nothing else.

The models in `doctor_models` are runs of `opencrate train digits model.config.hidden_size=48
model.config.num_hidden_layers=4 model.config.num_attention_heads=4 training.num_train_epochs=25
training.learning_rate=2e-3 training.seed=5` and of `digits-mae` with the same width, three and one layers and
`training.learning_rate=4e-3`; the language model is trained here for a second or two.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opencrate import diagnose
from opencrate.analysis.doctor.diagnose import CHECKS, FAIL, FINDING, NOT_CHECKED, OK
from opencrate.analysis.doctor.outputs import take

from .language_models import STORY, causal

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import doctor_study as study  # noqa: E402
from doctor_sabotage import SABOTAGES, DoesNotApply, Patient, apply, write_score  # noqa: E402

KINDS = ("digits", "mae", "text")
NEEDS_MORE = {"colours-swapped", "other-seed-mixed", "other-seed-layer"}
"""Sabotages that fit none of these models: no colour, no second seed."""


def language_patient() -> Patient:
    """A small causal CRATE that has learnt to spell STORY, on the blocks it was trained on."""
    language = causal("crate", steps=60)
    ids = torch.tensor(language.tokenizer(STORY)["input_ids"])
    blocks = ids[: len(ids) // 32 * 32].view(-1, 32)[:64]
    patient = Patient(language.model, [{"input_ids": blocks, "labels": blocks.clone()}], stored={"loss": 0.0})
    write_score(patient)
    return patient


@pytest.fixture(scope="module")
def patients() -> dict[str, Patient]:
    """One healthy patient of each kind."""
    folders = {kind: Path(__file__).parent / "doctor_models" / kind for kind in ("digits", "mae")}
    return {kind: study.open_patient(folder) for kind, folder in folders.items()} | {"text": language_patient()}


def verdicts(patient: Patient) -> dict[str, str]:
    found = diagnose(patient.model, **patient.options())
    return {one.check: one.verdict for one in found.findings}


@pytest.mark.parametrize("kind", KINDS)
def test_healthy_models_pass(patients, kind):
    found = verdicts(patients[kind])
    assert {check: verdict for check, verdict in found.items() if verdict not in (OK, FINDING, NOT_CHECKED)} == {}
    assert found["stored-score"] == OK


@pytest.fixture(scope="module")
def small(patients) -> dict[str, Patient]:
    """The same on their first 60 inputs, with the score on those."""
    found = {}
    for kind, patient in patients.items():
        parts = {name: getattr(patient, name) for name in ("batches", "train_batches", "scored")}
        parts = {name: None if batches is None else take(batches, 60)[0] for name, batches in parts.items()}
        found[kind] = replace(patient, **parts)
        write_score(found[kind])
    return found


def seen(patient: Patient, name: str) -> list[str] | None:
    """The checks that fail after a sabotage; `None` where it does not fit."""
    sick = copy.deepcopy(patient)
    try:
        apply(name, sick)
    except DoesNotApply:
        return None
    return [check for check, verdict in verdicts(sick).items() if verdict == FAIL]


@pytest.mark.parametrize("name", [name for name in SABOTAGES if name not in NEEDS_MORE])
def test_damage_is_seen(small, name):
    """On the first kind of model that it fits; one of them it does."""
    found = next(found for found in (seen(small[kind], name) for kind in KINDS) if found is not None)
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SABOTAGES if name not in NEEDS_MORE])
def test_damage_is_seen_on_every_kind(patients, name):
    found = {kind: seen(patients[kind], name) for kind in KINDS}
    assert all(checks for checks in found.values() if checks is not None), found


@pytest.mark.parametrize("name", ["attention-zero-all", "attention-zero-one", "class-never", "layer-fresh"])
def test_damage_is_seen_without_the_run(patients, name):
    """Without the stored score, the log and training images, and where it can be without labels."""
    sick = copy.deepcopy(patients["digits"])
    apply(name, sick)
    pixels = [batch["pixel_values"] for batch in sick.batches]
    assert not diagnose(sick.model, sick.batches).healthy()
    assert diagnose(sick.model, pixels).healthy() == (name == "class-never")


def test_the_documents_tables_are_the_generated_ones():
    texts = [path.read_text(encoding="utf-8") for path in study.DOCS]
    assert [study.docs_with_tables(text) for text in texts] == texts
    assert sum(text.count("<!-- table: ") for text in texts) == 4
    assert [row["check"] for row in study.read_table("checks")] == [f"`{check}`" for check in CHECKS]
    assert {row["sabotage"] for row in study.read_table("sabotages")} <= set(SABOTAGES) | {study.HEALTHY}
