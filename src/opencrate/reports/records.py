"""What a page says was run: the command, the data with its fingerprint, the training, the machine and the versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from .._files import printable, read_bytes, read_json, shown
from ..data.fingerprint import fingerprint
from ..recipe.schema import Recipe
from ..store import runs
from ..store.inputs import Split
from ..store.saved import SavedModel
from .whitebox import RunRecord

CardFacts = list[tuple[str, str]]


def images_record(saved: SavedModel, images: Dataset, command: str, data: str | None, split: Split) -> RunRecord:
    """Of labelled images that `saved` was evaluated on; `data` and `split` as `store.inputs.labelled_images`."""
    own = saved.recipe.data.path if saved.recipe else None
    source = data or own or ""
    words = "handwritten digits" if source == "digits" else Path(source).resolve().name
    part = {"train": "training", "validation": "validation", "test": "held-out"}[split]
    kind = f"{part} images" if source in (own, "digits") else "images"
    mark = fingerprint(images)
    facts = [
        ("command", command),
        ("images", f"{mark['images']:,} {kind} of {words}; SHA-256 of {mark['of']}: {mark['sha256']}"),
    ]
    listings: CardFacts = []
    if saved.recipe and saved.metrics:
        found, listings = training_record(saved.path, saved.recipe, saved.metrics)
        facts += found
    return RunRecord(f"{kind} of {words}", tuple(facts), tuple(listings))


def training_record(run: Path, recipe: Recipe, metrics: Mapping[str, Any]) -> tuple[CardFacts, CardFacts]:
    """CardFacts and listings of a run directory; metrics that do not say what the run was trained on are refused."""
    trained = metrics.get("data", {}).get("train")
    if not isinstance(trained, dict) or "sha256" not in trained or not {"images", "tokens"} & trained.keys():
        raise ValueError(f"{shown(run / runs.METRICS)}: damaged ('data.train' is incomplete); train again")
    if "images" in trained:
        data = ("training images", f"{trained['images']:,}; SHA-256 of {trained.get('of')}: {trained['sha256']}")
    else:
        data = ("training text", f"{trained['tokens']:,} tokens; SHA-256: {trained['sha256']}")
    facts = [
        (
            "training",
            f"recipe {recipe.name}, seed {metrics['seed']}, {metrics['epochs']:g} epochs, "
            f"{metrics['steps']:,} steps, {metrics['seconds']:.1f} s",
        ),
        data,
        *_machine_facts(run / runs.ENVIRONMENT),
    ]
    return facts, [(name, _listing(run / name)) for name in (runs.RECIPE, runs.ENVIRONMENT)]


def _machine_facts(path: Path) -> CardFacts:
    """What a run was made on; the numbers stand without it, so a damaged file is reported, not an error."""
    try:
        machine = read_json(path)
        device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['torch_threads']} threads"
        versions = ", ".join(f"{name} {machine[name]}" for name in ("opencrate", "torch", "transformers", "python"))
        facts = [("machine", f"{device}; {machine['system']}"), ("versions", versions)]
        return facts + ([("commit", machine["commit"])] if machine["commit"] else [])
    except (ValueError, KeyError, TypeError):
        return [("machine", f"unknown: {path.name} is missing or damaged")]


def _listing(path: Path) -> str:
    """A side file's text for the page."""
    try:
        return printable(read_bytes(path, limit=1 << 20).decode("utf-8", "backslashreplace"))
    except ValueError as error:
        return str(error)
