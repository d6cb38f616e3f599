"""Uploading, against a stand-in of the Hub: nothing leaves this process."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from opencrate import CrateForImageClassification, CrateImageProcessor, push_run
from opencrate.store.card import CardFacts


@pytest.fixture
def hub(monkeypatch):
    """What reached it: the repositories, and the files of each upload with their content."""
    seen = {"repositories": [], "files": {}}

    def create_repo(self, repo_id, **options):
        seen["repositories"].append((repo_id, options.get("private")))
        return type("Repo", (), {"repo_id": repo_id})()

    def upload_folder(self, *, repo_id, folder_path, **_):
        folder = Path(folder_path)
        seen["files"] = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        return f"https://hub/{repo_id}/commit/1"

    def create_commit(self, repo_id, operations, **_):
        seen["files"] = {one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations}

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the inherited method looks for a card
    for name, function in (
        ("create_repo", create_repo),
        ("upload_folder", upload_folder),
        ("create_commit", create_commit),
    ):
        monkeypatch.setattr(HfApi, name, function)
    return seen


def test_a_run_goes_with_its_card_and_without_its_states(hub, digits_runs, tmp_path):
    run = tmp_path / "run"
    run.symlink_to(digits_runs[0])
    address = push_run(run, "someone/digits", CardFacts(license="mit", data_license="CC BY 4.0"), private=True)
    assert address == "https://hub/someone/digits/commit/1" and hub["repositories"] == [("someone/digits", True)]
    names = set(hub["files"])
    settings = {"config.json", "preprocessor_config.json", "model.safetensors", "README.md", "training.yaml"}
    assert settings <= names and {name for name in names - settings if not name.endswith(".py")} == set()
    assert {"modeling_crate.py", "configuration_crate.py", "operators.py"} <= names
    card = ModelCard(hub["files"]["README.md"].decode())
    assert card.data.license == "mit" and 'model="someone/digits"' in card.content
    assert hub["files"]["model.safetensors"] == (digits_runs[0] / "model.safetensors").read_bytes()


def test_a_whitened_start_goes_too(hub, whitened_run):
    push_run(whitened_run, "someone/whitened")
    assert hub["files"]["start.safetensors"] == (whitened_run / "start.safetensors").read_bytes()


def test_no_checkpoint_and_no_path_goes(hub, text_run):
    (text_run / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (text_run / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"state")
    push_run(text_run, "someone/letters")
    assert not [name for name in hub["files"] if "checkpoint" in name or name.endswith((".pt", ".jsonl"))]
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(hub["files"])
    assert not {"recipe.yaml", "metrics.json", "environment.json", "start.safetensors"} & set(hub["files"])
    for name, content in hub["files"].items():
        assert str(text_run.parent).encode() not in content, name


def test_the_inherited_methods_work(hub, digits_runs):
    CrateForImageClassification.from_pretrained(digits_runs[0]).push_to_hub("someone/digits")
    assert {"config.json", "model.safetensors", "README.md", "modeling_crate.py"} <= set(hub["files"])
    CrateImageProcessor.from_pretrained(digits_runs[0]).push_to_hub("someone/digits")
    assert "preprocessor_config.json" in hub["files"]


def test_no_run_is_pushed_that_is_none(hub, tmp_path):
    with pytest.raises(ValueError, match="give a directory written by"):
        push_run(tmp_path, "someone/digits")
    assert hub["repositories"] == []
