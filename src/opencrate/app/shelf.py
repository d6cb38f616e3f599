"""The models that a page offers, by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._files import HUB_PREFIX
from .._weights import how_to_install, installed_models, is_packaged_name, weights_package
from ..analysis.features.codes import code_modules
from ..store.kinds import LANGUAGE, Kind
from ..store.saved import SavedModel, name_of, open_saved


@dataclass(frozen=True)
class Shelf:
    """Models by the names that readers see.

    Attributes:
        models: opened, in the order given.
    """

    models: dict[str, SavedModel]

    def __getitem__(self, name: str) -> SavedModel:
        """The model of a name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.models:
            raise ValueError(f"model: {name!r} is not on this page; choose {', '.join(self.models)}")
        return self.models[name]

    def names(self, kinds: Collection[Kind] | None = None, reads: str | None = None) -> list[str]:
        """The names of the models of some kinds, or of those that read images, or texts."""
        return [
            name
            for name, saved in self.models.items()
            if (kinds is None or saved.kind in kinds) and reads in (None, saved.reads)
        ]

    @property
    def paths(self) -> dict[str, str]:
        """What the models' folders are called where a message names them."""
        return {str(saved.path): name for name, saved in self.models.items()}


def num_layers(saved: SavedModel) -> int:
    """The layers of a model, of an autoencoder those of its encoder."""
    return len(code_modules(saved.model))


def default_models() -> list[str]:
    """The installed models of opencrate-weights.

    Raises:
        ValueError: there are none.
    """
    found = [str(model["name"]) for model in installed_models()]
    if not found:
        why = "is not installed" if weights_package() is None else "holds no models"
        raise ValueError(f"models: none given, and opencrate-weights {why}; give a model, or {how_to_install()}")
    return found


def open_shelf(sources: Sequence[str] = ()) -> Shelf:
    """Open models for a page.

    Args:
        sources: run directories, saved folders, `opencrate/name` or `hf://owner/name`; by default all installed models.

    Raises:
        ValueError: none given and none installed, a model that cannot be opened, or one that nothing can be shown of.
    """
    models: dict[str, SavedModel] = {}
    for source in sources or default_models():
        saved = open_saved(_absolute(source))
        if saved.kind in ("sentences", "other") and saved.reads == "texts":
            raise ValueError(f"{source}: reads texts and does not predict tokens; the page has nothing to show of it")
        # what is missing is said now, and not to a reader of the page
        _ = saved.tokenizer if saved.kind in LANGUAGE else saved.transform
        models[_free_name(source, models)] = saved
    return Shelf(models)


def _absolute(source: str) -> str:
    """The source as it stays right in another working directory."""
    plain = source.startswith(HUB_PREFIX) or is_packaged_name(source)
    return source if plain else str(Path(source).expanduser().absolute())


def _free_name(source: str, taken: Collection[str]) -> str:
    """The name for readers, numbered where there is one already."""
    name = source if is_packaged_name(source) else name_of(source)
    number = 2
    while name in taken:
        name, number = f"{name.split(' #')[0]} #{number}", number + 1
    return name
