"""A trained model read back from disk, with the images it is to be measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..analysis.evaluation import Evaluation, evaluate_classifier
from ..data.sources import load_images, load_labelled
from ..data.tensors import ImageTransform, in_batches, to_tensors
from . import runs
from .models import load_classifier
from .recipe import Recipe, load_recipe

Split = Literal["train", "validation", "test"]
_ARCHITECTURES = {"crate": "CRATE", "vit": "ViT"}


@dataclass(frozen=True)
class SavedModel:
    """A classifier from a run directory, or from any saved folder (then `recipe` and `metrics` are `None`)."""

    path: Path
    model: PreTrainedModel
    processor: Any
    transform: ImageTransform
    recipe: Recipe | None
    metrics: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's."""
        return self.recipe.name if self.recipe else self.path.resolve().name

    @property
    def title(self) -> str:
        """The architecture and the name, for readers: `CRATE (digits)`."""
        kind = self.model.config.model_type
        return f"{_ARCHITECTURES.get(kind, kind)} ({self.name})"

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def images(self, data: str | None = None, split: Split = "test") -> Dataset:
        """Labelled images, with the model's label numbers.

        Args:
            data: `None` for the data of the run's own recipe; else "digits" or an image folder, all of it, or
                its test part where it has one.
            split: which part of the run's own data.

        Raises:
            ValueError: no data given and none known, a split that the run does not have, or other classes.
        """
        own = self.recipe.data if self.recipe else None
        if own is None and data is None:
            raise ValueError(f"{self.path}: has no recipe, so it names no data; give --data FOLDER")
        if data == "digits" and (own is None or own.path != data):
            own = load_recipe("digits").data
        elif own is None or data not in (None, own.path):
            if split != "test":
                raise ValueError(f"--split {split}: parts are known for a run's own data only; leave --split out")
            return load_labelled(data, self.label_names)
        dataset = getattr(load_images(own), split)
        if dataset is None:
            raise ValueError(f"--split {split}: the run held out no {split} images (data.{split}_fraction is 0)")
        if dataset.features["label"].names != self.label_names:
            raise ValueError(
                f"{own.path}: its classes {dataset.features['label'].names} are not those of the model, "
                f"{self.label_names}; give --data with images of the model's classes"
            )
        return dataset

    def batches(self, images: Dataset, batch_size: int = 256) -> DataLoader:
        """Model-ready batches of `pixel_values` and `labels`, in order."""
        return in_batches(to_tensors(images, self.transform), batch_size)

    def evaluate(self, batches: DataLoader) -> Evaluation:
        """Accuracy, loss and confusion on labelled batches."""
        return evaluate_classifier(self.model, batches)


def open_saved(path: str | Path) -> SavedModel:
    """Read a run directory or a folder written by `save_pretrained`.

    Raises:
        ValueError: as `load_classifier`.
    """
    path = Path(path).expanduser()
    model, processor = load_classifier(path)
    is_run = (path / runs.RECIPE).is_file() and (path / runs.METRICS).is_file()
    return SavedModel(
        path=path,
        model=model.to("cuda" if torch.cuda.is_available() else "cpu").eval(),
        processor=processor,
        transform=ImageTransform.for_model(model.config, processor),
        recipe=runs.read_recipe(path) if is_run else None,
        metrics=runs.read_metrics(path) if is_run else None,
    )
