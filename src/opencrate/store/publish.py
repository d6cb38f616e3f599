"""What of a run is for others: the model, its processor or tokenizer, the card and the recipe without local paths."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from .._outputs import write_text
from .._pretrained import weight_files
from ..recipe.load import recipe_yaml
from ..recipe.locations import portable
from . import card, runs

SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"),
)
"""What makes a model's inputs and says how to build it."""


def push_run(
    run: str | Path,
    repo_id: str,
    facts: card.CardFacts | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a run's model to the Hugging Face Hub; the address of the commit.

    Weights, configuration, the model's code, processor or tokenizer, card and recipe go, and of a whitened start the
    patch embedding. Logs, metrics, checkpoints, optimizer states and paths of this machine stay. A repository that
    exists gets a new commit.

    Args:
        run: a finished run directory.
        repo_id: `owner/name`.
        facts: what the card says beyond the run: state the licences of weights and data there.
        private: whether a new repository is private; by default as the owner's settings are.
        token: of the Hub; by default that of `hf auth login`.

    Raises:
        ValueError: no complete run.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as working:
        stage(run, Path(working), repo_id, facts)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repo_id, folder_path=working, commit_message="Upload a model of OpenCRATE")
        )


def stage(run: str | Path, folder: Path, repo_id: str, facts: card.CardFacts | None = None) -> None:
    """Copy what of a run is for others into an empty folder, with the card and the recipe."""
    run = Path(run).expanduser()
    recipe = runs.read_recipe(run)
    settings = (run / name for name in (*SETTINGS, runs.START))
    for path in (*settings, *run.glob("*.py"), *weight_files(run), *run.glob("*.index.json")):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    write_text(folder / runs.PORTABLE_RECIPE, recipe_yaml(portable(recipe)))
    facts = replace(facts or card.CardFacts(), recipe_file=runs.PORTABLE_RECIPE)
    named = replace(facts, title=facts.title or repo_id, use=facts.use or card.use_of(recipe, repo_id))
    card.write_card(run, named, folder)
