"""`opencrate.analyze`: one model's layers measured, as trained, untrained and at checkpoints, on the same inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..._files import read_json, shown
from ..._outputs import write_whole
from ...blocks import compressions
from ...certificate import guarantees
from ...evaluation.inputs import Batch
from ...store.saved import load_model, name_of, untrained_copy
from ..record.hooks import BlockHooks
from ..record.states import CRATE_HALF_STEP, LEARNED, describe_states, unwrapped
from .result import LayerMeasures, layer_measures

TRAINED, INITIAL = "trained", "initialisation"
REPORT_FILE = "white_box.json"


@dataclass(frozen=True)
class LayerAnalysis:
    """The measures of one model's layers, and what they were taken against.

    Attributes:
        model: its name, for readers.
        model_type: transformers' word for the architecture ("crate", "vit", "gpt2", ...).
        series: measures by name: "trained", then "initialisation" and checkpoints on request; all on the same inputs.
        subspace_kind: what the subspaces of R^c are: "learned U" of a CRATE, else a value of `states.SUBSPACES`.
        half_step: what Z^{ℓ+½} is, in symbols.
        inputs: what was measured on, "images" or "texts".
        guaranteed: whether every layer must lower R^c and every ISTA step its objective, on any input, by construction.
    """

    model: str
    model_type: str
    series: dict[str, LayerMeasures]
    subspace_kind: str = LEARNED
    half_step: str = CRATE_HALF_STEP
    inputs: str = "images"
    guaranteed: bool = False

    @property
    def measures(self) -> LayerMeasures:
        """Of the model as it was given."""
        return self.series[TRAINED]

    @property
    def initial(self) -> LayerMeasures | None:
        """Of the same architecture untrained, where that was measured."""
        return self.series.get(INITIAL)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per state of training, measure and layer; see `LayerMeasures.to_rows`."""
        return [
            {"model": self.model, "state": name, "subspaces": self.subspace_kind, **row}
            for name, measures in self.series.items()
            for row in measures.to_rows()
        ]

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, for JSON; `from_dict` reads it back."""
        names = ("model", "model_type", "subspace_kind", "half_step", "inputs", "guaranteed")
        words = {name: getattr(self, name) for name in names}
        return {**words, "series": {name: measures.to_dict() for name, measures in self.series.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerAnalysis:
        """The report that `to_dict` wrote."""
        series = {name: LayerMeasures.from_dict(measures) for name, measures in data["series"].items()}
        return cls(**{**data, "series": series})

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write `white_box.json` (every input's value) and `layers.csv` (the rows), each whole or not at all.

        The folder is made if it does not exist, and returned.

        Raises:
            ValueError: there is a report already and `overwrite` is not set.
        """
        folder = Path(folder).expanduser()
        if (folder / REPORT_FILE).exists() and not overwrite:
            raise ValueError(f"{folder / REPORT_FILE}: exists; choose another folder, or pass overwrite=True")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "layers.csv", self.to_frame().to_csv(index=False, lineterminator="\n").encode())
        text = json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
        write_whole(folder / REPORT_FILE, text.encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> LayerAnalysis:
        """The report that `save` wrote.

        Raises:
            ValueError: there is none in the folder, or it is damaged.
        """
        path = Path(folder).expanduser() / REPORT_FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a folder that LayerAnalysis.save wrote")
        try:
            return cls.from_dict(read_json(path, advice="measure again"))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{shown(path)}: damaged (not what `save` wrote); measure again") from error


def analyze(
    model: nn.Module | str | os.PathLike,
    inputs: Batch | Iterable[Batch],
    *,
    eps: float = 0.5,
    num_inputs: int | None = None,
    layers: Sequence[int] | None = None,
    measures: str | Sequence[str] = "basic",
    initial: nn.Module | str | None = None,
    checkpoints: Mapping[str, nn.Module | str | os.PathLike] | None = None,
    subspaces: str = "values",
    hooks: BlockHooks | None = None,
    name: str | None = None,
    **options: Any,
) -> LayerAnalysis:
    """Measure every layer of a model on every input: coding rates, rate reduction and sparsity, step by step.

    A CRATE is measured against its learned subspaces U. Any other transformer has none: it is measured against its
    heads' value (or key) projections or against principal directions of its tokens, and every row of the result says
    which. Sizes of R^c against different kinds of subspaces must not be compared.

    One batch is in memory at a time, cut to at most `states.MAX_BATCH` inputs.

    Args:
        model: a module; a run directory or a folder written by `save_pretrained`; or `hf://owner/name` (the only form
            that uses the network).
        inputs: pixel values `(B, C, H, W)` or token ids `(B, N)`, or mappings with `pixel_values` or `input_ids` (and
            `attention_mask`): one batch, or a list or DataLoader of them (read several times).
        eps: ε > 0 of the coding rates.
        num_inputs, layers, hooks: see `states.record`.
        measures: a set's name or the keys of `rates.MEASURES`; see `rates.layer_measures`.
        initial: also measure this model, the same architecture before training; "untrained" makes a fresh copy of
            seed 0 (a run's own start is rebuilt by the command `opencrate analyze RUN`).
        checkpoints: also measure these, by name; paths are loaded one at a time.
        subspaces: of a model other than CRATE: "values", "keys" or "pca"; see `states.record`.
        name: of the model in the report; the folder's, Hub id's or class's by default.
        options: further options of `rates.layer_measures`.

    Raises:
        ValueError: a model that cannot be loaded, or of an unknown type without `hooks`; ε <= 0; no inputs, or fewer
            than requested; layers that the model does not have; a state that is not finite (names its layer).
    """
    single = isinstance(inputs, (Tensor, Mapping))  # a batch is iterable too, which the type of `inputs` cannot exclude
    batches: Iterable[Batch] = [inputs] if single else inputs  # pyright: ignore[reportAssignmentType]
    if (initial is not None or checkpoints) and iter(batches) is batches:
        raise ValueError("inputs: can be read only once (a generator); pass a list or a DataLoader")
    name = name or name_of(model)
    module = load_model(model)
    chosen = {"num_inputs": num_inputs, "layers": layers, "measures": measures, "subspaces": subspaces, "hooks": hooks}
    series = {
        state: layer_measures(one, batches, eps, **chosen, **options)
        for state, one in _states_of_training(module, initial, checkpoints)
    }
    kind, half_step = describe_states(module, subspaces, hooks)
    return LayerAnalysis(
        model=name,
        model_type=getattr(getattr(module, "config", None), "model_type", type(module).__name__),
        series=series,
        subspace_kind=kind,
        half_step=half_step,
        inputs="texts" if getattr(module, "main_input_name", "") == "input_ids" else "images",
        guaranteed=_guaranteed(module, eps),
    )


def _guaranteed(model: nn.Module, eps: float) -> bool:
    """Of a CRATE, whether no step can ascend."""
    model = unwrapped(model)
    return bool(compressions(model)) and all(all(sure) for sure in guarantees(model, eps))


def _states_of_training(
    model: nn.Module, initial: nn.Module | str | None, checkpoints: Mapping[str, Any] | None
) -> Iterator[tuple[str, nn.Module]]:
    """The model and what stands beside it, loaded one at a time."""
    yield TRAINED, model
    if isinstance(initial, str):
        if initial != "untrained":
            raise ValueError(f"initial='{initial}': must be a model, 'untrained' or None")
        initial = untrained_copy(model, seed=0)
    if initial is not None:
        yield INITIAL, initial
    for name, checkpoint in (checkpoints or {}).items():
        if name in (TRAINED, INITIAL):
            raise ValueError(f"checkpoints: '{name}' is taken; give the checkpoint another name")
        yield name, load_model(checkpoint)
