"""A training step does not wait for the accelerator: no tensor of the step is read by the host between two logs.

On a CPU the calls are counted that would wait on an accelerator: reading a scalar, places that depend on values, and
copies to the host. What reads a batch before it is copied to the device (`get_batch_samples`, `completed`) is free.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from opencrate import _logdet
from opencrate.recipe.load import load_recipe
from opencrate.training.callbacks import FiniteWatch
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer

WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2", "item", "equal")
STEPS = 5
FORMS = {
    "adamw": ("optimiser.ema_decay=0.9", "data.keep_on=device"),
    "muon": ("optimiser.optim=muon", "augmentation.mixup=0.4", "training.gradient_accumulation_steps=2"),
    "lion": ("optimiser.optim=lion", "model.config.subspace_penalty=0.1"),
    "bf16": ("training.bf16=true", "training.max_grad_norm=0"),
    "autoencoder": (
        "task=masked-autoencoding",
        "model.type=crate_mae",
        "model.config.decoder_num_hidden_layers=1",
        "model.config.mask_tokens_in_encoder=false",
        "training.label_smoothing_factor=0",
    ),
}


class Waits(TorchDispatchMode):
    """Counts what an accelerator would be waited for."""

    def __init__(self):
        super().__init__()
        self.trainer, self.free, self.found = None, False, Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        masks = name == "index" and any(one is not None and one.dtype == torch.bool for one in arguments[1])
        if name in WAITING or masks:
            self.note(name)
        return function(*arguments, **(options or {}))

    def note(self, name):
        """In the steps between the first and the last, which are logged."""
        if not self.free and self.trainer is not None and 0 < self.trainer.state.global_step < STEPS - 1:
            self.found[name] += 1


def on_device(self, value, args, step):
    """`FiniteWatch.look` as on an accelerator, without what has come back to the host."""
    self._first = torch.zeros((), dtype=torch.int64) if self._first is None else self._first
    self.look_later(torch.isfinite(value.detach()), args, step)


def waits_of(recipe, folder, monkeypatch):
    """{operation: times} over the middle steps of an epoch."""
    waits = Waits()

    def on_host(name):
        original = getattr(RecipeTrainer, name)

        def free(self, *arguments, **options):
            waits.trainer, waits.free = self, True
            try:
                return original(self, *arguments, **options)
            finally:
                waits.free = False

        monkeypatch.setattr(RecipeTrainer, name, free)

    for name in ("get_batch_samples", "completed"):
        on_host(name)
    for name in ("log", "save_checkpoint_now"):
        on_host(name)
    for name in ("tolist", "numpy", "cpu"):  # which no dispatch tells of
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, name=name, f=original: waits.note(name) or f(self, *a))
    monkeypatch.setattr(FiniteWatch, "look", on_device)
    with waits:
        train(recipe, folder)
    return waits.found


SHORT = ("training.per_device_train_batch_size=2", f"training.max_steps={STEPS}", "logging.measure_inputs=0")


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_images(small, form, monkeypatch, tmp_path):
    assert not waits_of(small(*SHORT, *FORMS[form]), tmp_path / "run", monkeypatch)


def test_the_regulariser_waits_once_for_each_rate(small, monkeypatch, tmp_path):
    """Whether a matrix is to be factorised or decomposed is read from its values: R and R^c, in each of three steps."""
    monkeypatch.setattr(_logdet, "_READ_AT_ONCE", ())  # as on an accelerator
    recipe = small(*SHORT, "regulariser.weight=0.1")
    assert waits_of(recipe, tmp_path / "run", monkeypatch) == {"tolist": 2 * (STEPS - 2)}


MASKED = ("task=masked-lm", "model.config.is_causal=false", "text.tokenizer=wordpiece", "text.vocab_size=80")


@pytest.mark.parametrize("form", [(), MASKED], ids=["causal", "masked"])
def test_steps_of_text(form, monkeypatch, tmp_path):
    monkeypatch.setattr("opencrate.modeling_crate_text_model._check_ids", lambda *ids: None)  # on a CPU only
    monkeypatch.setenv("OPENCRATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the small boat leaves when the bell rings over quiet water.\n" * 90)
    tiny = "model.config={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    recipe = load_recipe(
        "shakespeare", [f"text.path={tmp_path / 'text.txt'}", tiny, "text.block_size=32", *SHORT, *form]
    )
    assert not waits_of(recipe, tmp_path / "run", monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_steps_on_a_gpu(small, form, monkeypatch, tmp_path):
    """CUDA itself raises an error at a call that waits."""
    original = RecipeTrainer.training_step

    def training_step(self, *arguments, **options):
        torch.cuda.set_sync_debug_mode("error" if 0 < self.state.global_step < STEPS - 1 else "default")
        return original(self, *arguments, **options)

    monkeypatch.setattr(RecipeTrainer, "training_step", training_step)
    try:
        train(small(*SHORT, *FORMS[form]), tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
