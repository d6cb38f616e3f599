"""A trained model read back from disk, with the images it is to be measured on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..data.images.class_names import ORDER, name_classes, read_class_names
from ..data.images.labelled import label_names, relabelled
from ..data.images.sources import ImageSplits, evaluation_part, load_images, load_labelled, read_parts
from ..data.images.tensors import ImageTransform, drop_bad, in_batches, to_tensors
from ..data.options import ImageData
from ..recipe.load import load_recipe
from ..recipe.locations import same_place
from ..recipe.schema import ENCODERS, Recipe
from . import runs
from .build import initialise, load_classifier, load_saved

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
_ARCHITECTURES = {"crate": "CRATE", "vit": "ViT", "crate_mae": "CRATE-MAE", "vit_mae": "ViTMAE"}


@dataclass(frozen=True)
class SavedModel:
    """A model from a run directory, or from any saved folder (then `recipe` and `metrics` are `None`).

    A classifier, unless it was opened as any model. Recipe and metrics are read when they are asked for, so that a
    run in which one is damaged can be used where it does not matter.
    """

    path: Path
    model: PreTrainedModel
    processor: Any
    transform: ImageTransform

    @cached_property
    def recipe(self) -> Recipe | None:
        """What the run was trained by."""
        return runs.read_recipe(self.path) if self._is_run else None

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """What the run came to."""
        return runs.read_metrics(self.path) if self._is_run else None

    @property
    def _is_run(self) -> bool:
        return (self.path / runs.RECIPE).is_file() and (self.path / runs.METRICS).is_file()

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's."""
        return self.recipe.name if self.recipe else self.path.resolve().name

    @property
    def title(self) -> str:
        """The architecture and the name, for readers: `CRATE (digits)`."""
        return title_of(self.model, self.name)

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def images(self, data: str | None = None, split: Split = "test", skip_bad: bool = False) -> Dataset:
        """Labelled images, with the model's label numbers.

        Args:
            data: `None` for the data of the run's own recipe; else anything that `data.path` takes, all of it, or
                its test part where it has one.
            split: which part of the run's own data.
            skip_bad: leave out unreadable images, and log which; a run that was trained so always does for its
                own data, so that its parts stay the same.

        Raises:
            ValueError: no data given and none known, a split that the run does not have, or other classes.
        """
        if not self._is_own(data):
            if split != "test":
                raise ValueError(f"--split {split}: parts are known for a run's own data only; leave --split out")
            skipped: list[str] | None = [] if skip_bad else None
            images = load_labelled(data, self.label_names, skipped=skipped)
            if skipped is not None:
                images, reasons = drop_bad(images, self.transform)
                log_skipped([*skipped, *reasons])
            return images
        own = self._data_recipe(data)
        dataset = getattr(self._load(own, skip_bad), split)
        if dataset is None:
            raise ValueError(f"--split {split}: the run held out no {split} images (data.{split}_fraction is 0)")
        names = dataset.features["label"].names
        if set(names) != set(self.label_names):
            raise ValueError(
                f"{own.path}: its classes {names} are not those of the model, {self.label_names}; give --data with "
                "images of the model's classes"
            )
        return relabelled(dataset, self.label_names, own.path)

    def name_classes(self, source: str, data: str | None = None) -> None:
        """Give the model's classes names, in place.

        Args:
            source: as `read_class_names`, or `order`: the classes of `data` in their order.
            data: anything that `data.path` takes.

        Raises:
            ValueError: as `read_class_names` and `load_labelled`, or not as many names as classes.
        """
        where = f"--class-names {source}"
        if source != ORDER:
            names = read_class_names(source)
        elif data is None:
            raise ValueError(f"{where}: goes by the order of the classes of --data; give --data")
        else:
            names, where = label_names(evaluation_part(data)), f"{where}: {data}"
        name_classes(self.model.config, names, where)

    def knows_classes(self, data: str | None) -> bool:
        """Whether images have labels, and every image is of one of the model's classes.

        Raises:
            ValueError: no data given and none known, or a source that is missing, empty or damaged.
        """
        if self._is_own(data):
            return True
        try:
            parts = read_parts(data)
        except ValueError:
            read_parts(data, labelled=False)
            return False
        try:
            for part in parts.values():
                relabelled(part, self.label_names, str(data))
        except ValueError:
            return False
        return True

    def parts(self, data: str | None = None, skip_bad: bool = False) -> tuple[Dataset, Dataset]:
        """Labelled images to fit a probe on and to count on: the training and the test part, of any classes.

        Args:
            data: `None` for the data of the run's own recipe; else anything that `data.path` takes. Data without
                parts is split as the run's recipe says.
            skip_bad: leave out unreadable images, and log which.

        Raises:
            ValueError: no data given and none known, or as `load_images`.
        """
        splits = self._load(self._data_recipe(data), skip_bad)
        return splits.train, splits.test

    def _is_own(self, data: str | None) -> bool:
        """Whether the words name the run's own data, or the digits, whose parts are known to every model."""
        if data is None and self.recipe is None:
            raise ValueError(f"{self.path}: has no recipe, so it names no data; give --data FOLDER")
        return data in (None, "digits") or self._names_own(data)

    def _names_own(self, data: str) -> bool:
        try:
            return self.recipe is not None and same_place("data.path", data, self.recipe.data.path)
        except ValueError:  # the recipe is damaged, and nobody needs it for other data
            return False

    def _data_recipe(self, data: str | None) -> ImageData:
        if self._is_own(data) and self.recipe is not None and (data is None or self._names_own(data)):
            return self.recipe.data
        if data == "digits":
            return load_recipe("digits").data
        base = self.recipe.data if self.recipe else ImageData(num_channels=self.transform.num_channels)
        return replace(base, path=data, image_column=None, label_column=None)

    def _load(self, data: ImageData, skip_bad: bool) -> ImageSplits:
        own = self.recipe is not None and data == self.recipe.data
        skipped_before = own and runs.left_out_bad(self.path)
        splits = load_images(data, skip_bad=skip_bad or skipped_before, smallest=self.transform.smallest)
        if skip_bad:
            log_skipped(splits.skipped)
        elif splits.skipped:
            logger.info("left out %d images that the training skipped", len(splits.skipped))
        return splits

    def batches(self, images: Dataset, batch_size: int = 256) -> DataLoader:
        """Model-ready batches of `pixel_values` and `labels`, in order."""
        return in_batches(to_tensors(images, self.transform), batch_size)

    def untrained(self) -> PreTrainedModel:
        """The same architecture before any training, from the run's seed (0 without a run), on the same device."""
        if self.recipe is not None:
            model = runs.initial_model(self.path)
        else:
            task = "masked-autoencoding" if self.model.config.model_type in ENCODERS else "image-classification"
            model = initialise(self.model.config, 0, task)
        return model.to(self.model.device).eval()


def title_of(model: PreTrainedModel, name: str) -> str:
    """The architecture and a name, for readers: `CRATE (digits)`."""
    kind = model.config.model_type
    return f"{_ARCHITECTURES.get(kind, kind)} ({name})"


def log_skipped(reasons: Sequence[str]) -> None:
    """Name each image that was left out on request, and count them."""
    for reason in reasons:
        logger.warning("skipped %s", reason)
    if reasons:
        logger.warning("skipped %d images", len(reasons))


def open_saved(path: str | Path, autoencoders: bool = False, finite: bool = True) -> SavedModel:
    """Read a run directory or a folder written by `save_pretrained`.

    Args:
        path: the folder.
        autoencoders: take a masked autoencoder too, not classifiers alone.
        finite: refuse weights that are NaN or infinite.

    Raises:
        ValueError: as `load_classifier`.
    """
    path = Path(path).expanduser().absolute()  # recipe and metrics are read later, perhaps from elsewhere
    model, processor = (load_saved if autoencoders else load_classifier)(path, finite)
    return SavedModel(
        path=path,
        model=model.to("cuda" if torch.cuda.is_available() else "cpu").eval(),
        processor=processor,
        transform=ImageTransform.for_model(model.config, processor),
    )
