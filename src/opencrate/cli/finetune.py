"""Train a recipe from the weights of another model.

  opencrate finetune runs/cifar10-seed0 imagefolder data.path=flowers data.image_size=32 data.resize_size=null
  opencrate finetune crate-base transfer-pets data.path=pets
  opencrate finetune runs/cifar10-mae-seed0 cifar10-mae-finetune data.path=cifar10

MODEL is a run directory, a saved folder, or what `opencrate convert` wrote; of a masked autoencoder (CRATE's or
transformers' ViTMAE) a classifier takes the encoder. Type, size and settings of the network are the model's own; a
bare `model.config.<field>=value` changes a setting. So are mean and deviation, image size and crop, interpolation and
channels, tokenizer and length, unless RECIPE or a bare `key=value` states another; then the line about the weights
says what they were trained with and what is used now. (A tokenizer that RECIPE would make from its text counts as not
stated.) This is `opencrate train RECIPE model.init_from=MODEL model.type=<its type> model.size=null model.config={}`.
What is loaded, new and left out is printed and recorded in metrics.json: the head is new where the classes differ,
positions are interpolated where the grid of patches differs, and any other weight that does not fit is an error unless
model.init_fresh names it.
"""

from __future__ import annotations

import argparse
import json

from .common import Parser, prepare_libraries
from .train import add_run_arguments, train_recipe

HELP = "train a recipe from another model's weights"
_IMAGES = {
    "image-classification": ("classifier", "features", "autoencoder", "other"),
    "self-supervised": ("classifier", "features", "autoencoder", "other"),
    "masked-autoencoding": ("autoencoder", "other"),
}
"""What a recipe of images starts from, by its task; all others start from what reads text."""


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate finetune`."""
    parser.usage = "opencrate finetune MODEL RECIPE [key=value ...] [options]"
    parser.add_argument("model", metavar="MODEL", help="run directory, saved folder, or opencrate/name")
    parser.add_argument("recipe", metavar="RECIPE", help="shipped recipe, YAML file or run directory")
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train from the model's weights."""
    from ..recipe.load import load_recipe
    from ..recipe.schema import ENCODERS
    from ..store.kinds import TEXTS, require_kind

    task = load_recipe(arguments.recipe).task
    require_kind(arguments.model, _IMAGES.get(task, TEXTS))
    prepare_libraries(arguments.debug)
    from .._pretrained import read_config_fields

    kind = read_config_fields(arguments.model)["model_type"]
    if task != "masked-autoencoding":
        kind = ENCODERS.get(kind, kind)
    source = [
        f"model.init_from={json.dumps(arguments.model)}",
        f"model.type={kind}",
        "model.size=null",
        "model.config={}",
    ]
    return train_recipe(arguments, [*source, *arguments.overrides])
