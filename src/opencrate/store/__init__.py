"""Models and runs on disk: built from a recipe, written as a whole, opened again."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .build import build_config as build_config, initialise as initialise
    from .card import CardFacts as CardFacts, model_card as model_card, write_card as write_card
    from .inputs import Inputs as Inputs, input_batches as input_batches, labelled_images as labelled_images
    from .kinds import kind_of as kind_of
    from .publish import push_run as push_run
    from .runs import read_metrics as read_metrics, read_recipe as read_recipe
    from .saved import SavedModel as SavedModel, open_saved as open_saved
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
