"""Started by `torchrun`: trains given recipes, then heads by transformers' own Trainer; see test_processes.py."""

import json
import sys
from pathlib import Path

import torch

from opencrate.recipe.load import load_recipe
from opencrate.recipe.schema import Recipe
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer

from .heads import PENALTIES, moved

HEADS = (
    *(("image classes", average) for average in (True, False)),
    *(("sequence regression", average) for average in (True, False)),
    *((name, True) for name in ("choices", "token classes", "causal", "question answering", "autoencoder")),
)
"""(head, average_tokens_across_devices); without the latter, processes of as many labels each make the same mean."""


def record(recipe: Recipe, output: Path) -> dict:
    """Train, and give the gradients of the first step and the global loss of every step."""
    gradients: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    original, clip = RecipeTrainer._get_grad_norm, RecipeTrainer._clip_grad_norm

    def clip_grad_norm(self, model):
        if self.state.global_step == 0:
            gradients.update({name: value.grad.clone() for name, value in self.model.named_parameters()})
        return clip(self, model)

    def grad_norm(self, model, grad_norm=None):
        losses.append(sum(self.processes.gather(self._tr_loss.item())) / self.processes.count)
        return original(self, model, grad_norm=grad_norm)

    RecipeTrainer._get_grad_norm, RecipeTrainer._clip_grad_norm = grad_norm, clip_grad_norm
    try:
        run = train(recipe, output)
    finally:
        RecipeTrainer._get_grad_norm, RecipeTrainer._clip_grad_norm = original, clip
    return {"gradients": gradients, "losses": losses, "wrote": run is not None}


def main() -> None:
    """Every recipe of the list in the file that is named, into `<output>-<number>`, and a step of each of `HEADS`.

    What the first process saw lies beside that file.
    """
    import opencrate

    opencrate.register_auto_classes()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for number, (recipe, overrides, output) in enumerate(jobs):
        found = record(load_recipe(recipe, overrides), Path(output))
        if found["wrote"]:
            torch.save(found, f"{sys.argv[1]}.{number}.pt")
    steps = {
        (name, average): moved(name, 2, 4, penalties=PENALTIES, average_tokens_across_devices=average)
        for name, average in HEADS
    }
    if torch.distributed.get_rank() == 0:
        torch.save(steps, f"{sys.argv[1]}.heads.pt")


if __name__ == "__main__":
    main()
