"""Started by `torchrun`: trains given recipes and writes what the first process saw; see test_processes.py."""

import json
import sys
from pathlib import Path

import torch

from opencrate.training.recipe import Recipe, load_recipe
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer


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
    """Every recipe of the list in the file that is named, into `<output>-<number>`."""
    import opencrate

    opencrate.register_auto_classes()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for number, (recipe, overrides, output) in enumerate(jobs):
        found = record(load_recipe(recipe, overrides), Path(output))
        if found["wrote"]:
            torch.save(found, f"{sys.argv[1]}.{number}.pt")


if __name__ == "__main__":
    main()
