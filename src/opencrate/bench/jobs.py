"""From settings and a case to a function that can be timed, with what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .flops import flops_of
from .models import build, config_of, count_parameters, equal_depth, inputs_of
from .published import check_same, published_form
from .settings import OURS, Case, Settings
from .timing import device_of_bench

CONTEXTS = 4
"""Lengths at which the published form, which has no cache, is timed per token: spread evenly over a generation."""


@dataclass(frozen=True)
class Job:
    """A function to time.

    Attributes:
        run: does it once.
        samples: images or tokens that one call makes.
        parameters: of the model.
        flops: see `flops_of`.
    """

    run: Callable[[], object]
    samples: int
    parameters: int
    flops: float | None


class Jobs:
    """Builds the functions of one run; models are built once and serve every mode and data type.

    Args:
        settings: what all have in common.
        checked: compare the published form with ours before it is used; not where memory is measured.
    """

    def __init__(self, settings: Settings, checked: bool = True) -> None:
        self.settings, self.device, self.checked = settings, device_of_bench(), checked
        self.config = config_of(settings)
        self.inputs = {name: value.to(self.device) for name, value in inputs_of(settings, self.config).items()}
        self._models: dict[tuple[str, str, str | None], Any] = {}

    def job(self, case: Case) -> Job:
        """The function of a case, its model set to training or evaluation.

        Raises:
            ValueError: the published form computes something else than this configuration; see also `equal_depth`.
        """
        mode = case.mode
        model = self.model(case.form, case.dtype if mode == "generate" else "float32", case.compiled)
        model.train(mode in ("step", "layers"))
        made: Callable[[Any, Case], Callable[[], object]] = getattr(self, f"_{mode}")
        config = self.config
        if case.form == "equal":
            config = config_of(self.settings, num_hidden_layers=equal_depth(self.settings))
        elif case.form == "visible":
            config = config_of(self.settings, mask_tokens_in_encoder=False)
        return Job(
            made(model, case), self._samples(case), count_parameters(model), flops_of(self.settings, case, config)
        )

    def model(self, form: str, dtype: str = "float32", compiled: str | None = None) -> Any:
        """A model on the device; the published form shares the parameters of ours, and is compared with it first."""
        key = (form, dtype, compiled)
        if key not in self._models:
            self._models[key] = self._build(form, dtype, compiled)
        return self._models[key]

    def _build(self, form: str, dtype: str, compiled: str | None) -> Any:
        if compiled is not None:
            return torch.compile(self.model(form, dtype), mode=compiled)
        if dtype != "float32":
            return build(self.settings, form).to(self.device, getattr(torch, dtype))
        if form != "published":
            return build(self.settings, form).to(self.device)
        ours = self.model(OURS)
        other = published_form(ours)
        if self.checked:
            check_same(self._output(ours), self._output(other))
        return other

    def _output(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**self._given(), **self._no_cache()).logits

    def _given(self, labels: bool = False) -> dict[str, Any]:
        return {name: value for name, value in self.inputs.items() if labels or name != "labels"}

    def _no_cache(self) -> dict[str, Any]:
        return {"use_cache": False} if self.settings.task in ("text", "decode") else {}

    def _samples(self, case: Case) -> int:
        if case.mode == "generate":
            return self.settings.batch * (CONTEXTS if case.form == "published" else self.settings.new)
        return self.settings.batch * (self.settings.block if self.settings.task == "text" else 1)

    def _autocast(self, case: Case) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=case.dtype == "bfloat16")

    # --- modes

    def _forward(self, model: Any, case: Case) -> Callable[[], object]:
        given = {**self._given(), **self._no_cache()}

        def run() -> object:
            with torch.no_grad(), self._autocast(case):
                return model(**given).logits

        return run

    def _step(self, model: Any, case: Case) -> Callable[[], object]:
        """Forward, backward and SGD of step size 0: a pass over the parameters, and the same weights every time."""
        given = {**self._given(labels=True), **self._no_cache()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def run() -> None:
            with self._autocast(case):
                loss = model(**given).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def _layers(self, model: Any, case: Case) -> Callable[[], object]:
        """Forward and backward of the encoder's layers, on random tokens, to a random linear function of the result."""
        if not hasattr(model, "crate"):
            raise ValueError(f"modes=layers: is for the forms of CRATE, not for {case.form}; leave one of the two out")
        encoded = 1 + self._num_patches(model) if self.settings.task != "text" else self.settings.block
        tokens, weights = torch.randn(2, self.settings.batch, encoded, self.config.hidden_size, device=self.device)

        def run() -> None:
            out = tokens
            with self._autocast(case):
                for layer in model.crate.layers:
                    out = layer(out, None)
            (out * weights).sum().backward()
            model.zero_grad(set_to_none=True)

        return run

    def _num_patches(self, model: Any) -> int:
        """That the encoder sees."""
        patches = self.config.grid_size[0] * self.config.grid_size[1]
        if self.settings.task == "mae" and not model.config.mask_tokens_in_encoder:
            return int(patches * (1 - self.config.mask_ratio))
        return patches

    def _generate(self, model: Any, case: Case) -> Callable[[], object]:
        """Greedy tokens after the prompt with a cache; of the published form the whole context anew for each token."""
        prompt, new = self.inputs["input_ids"], self.settings.new
        if case.form == "published":
            lengths = [prompt.shape[1] + round((i + 0.5) * new / CONTEXTS) for i in range(CONTEXTS)]
            contexts = [prompt.repeat(1, 2 + new // prompt.shape[1])[:, :length] for length in lengths]

            def recompute() -> None:
                with torch.no_grad():
                    for context in contexts:
                        model(context, use_cache=False, logits_to_keep=1)

            return recompute
        mask = torch.ones_like(prompt)
        return lambda: model.generate(prompt, attention_mask=mask, max_new_tokens=new, do_sample=False)
