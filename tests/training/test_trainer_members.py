"""transformers' Trainer still has the private members that training relies on, and still calls those we override."""

import pytest
import transformers
from transformers import Trainer

from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer
from opencrate.training.trainer_members import METHODS, OpenTrainer, require_methods

ATTRIBUTES = {
    "_tr_loss": "losses_since_logged",
    "_globalstep_last_logged": "logged_at",
    "current_gradient_accumulation_steps": "batches_per_step",
}
HOOKS = (
    "count_items",
    "gradient_is_ready",
    "epoch_is_needed",
    "load_weights",
    "checkpoints_folder",
    "write_checkpoint",
)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_disappears_or_changes_is_named(name, monkeypatch):
    require_methods(Trainer)
    monkeypatch.setattr(Trainer, name, lambda self, other: None)
    message = rf"transformers {transformers.__version__}: its Trainer has `{name}\(other\)` instead"
    with pytest.raises(ImportError, match=message):
        OpenTrainer()
    monkeypatch.delattr(Trainer, name)
    with pytest.raises(ImportError, match=rf"transformers {transformers.__version__}: its Trainer has no `{name}`"):
        OpenTrainer()


@pytest.mark.parametrize(("private", "public"), ATTRIBUTES.items())
def test_an_attribute_that_disappears_is_named(private, public):
    trainer = object.__new__(OpenTrainer)
    with pytest.raises(ImportError, match=rf"transformers {transformers.__version__}: .*no attribute `{private}`"):
        getattr(trainer, public)


def test_training_goes_through_every_member(small, monkeypatch, tmp_path):
    """A member that is there and no longer used would be left out without a word."""
    called, read = set(), set()

    def noting(name):
        original = getattr(RecipeTrainer, name)

        def noted(self, *arguments):
            called.add(name)
            if name == "gradient_is_ready" and self.state.global_step == 2 and not self.resumed_at:
                raise RuntimeError("stop")
            return original(self, *arguments)

        return noted

    for name in HOOKS:
        monkeypatch.setattr(RecipeTrainer, name, noting(name))
    original = OpenTrainer._of_training
    monkeypatch.setattr(OpenTrainer, "_of_training", lambda self, name: read.add(name) or original(self, name))
    recipe = small("training.save_strategy=steps", "training.save_steps=2", "training.num_train_epochs=1")
    with pytest.raises(RuntimeError, match="stop"):
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True)
    assert called == set(HOOKS) and read == set(ATTRIBUTES)
