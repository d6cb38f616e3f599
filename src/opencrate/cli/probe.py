"""How much a frozen model's tokens tell about the classes of labelled images.

  opencrate probe runs/digits-seed0
  opencrate probe runs/cifar10-seed0 --data flowers --method knn --layer 4 --token mean

A classifier that never touches the model is fitted on the training part of the images and counted on the test part:
logistic regression on standardised features (linear), or the 20 nearest neighbours by cosine (knn). Without --data,
the run's own images are used; other images may have other classes than the model.
"""

from __future__ import annotations

import argparse
import json

from .common import Parser, add_model_and_images, non_negative_int, positive_int, prepare_libraries, print_table

HELP = "linear or nearest-neighbour probe of a layer's tokens"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate probe`."""
    add_model_and_images(parser)
    parser.add_argument("--method", choices=("linear", "knn"), default="linear", help="default: linear")
    parser.add_argument("--layer", type=non_negative_int, metavar="L", help="0 is the embedding (default: the last)")
    parser.add_argument("--token", choices=("cls", "mean"), help="default: the token that the model's head reads")
    parser.add_argument("--batch-size", type=positive_int, default=256, metavar="N")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """Probe and print."""
    prepare_libraries(arguments.debug)
    from ..training.probe import features, last_layer, probe
    from ..training.saved import open_saved

    saved = open_saved(arguments.model)
    layer = last_layer(saved.model) if arguments.layer is None else arguments.layer
    token = arguments.token or getattr(saved.model.config, "pool", "cls")
    parts = saved.parts(arguments.data, arguments.skip_bad)
    train, test = (features(saved.model, saved.batches(part, arguments.batch_size), layer, token) for part in parts)
    found = probe(train, test, arguments.method, layer, token)
    if arguments.format == "json":
        print(json.dumps({"model": str(saved.path), **found.to_dict()}))
        return 0
    low, high = found.interval
    rows = [
        ("probe", f"{found.method}, layer {found.layer}, token {found.token}, {found.width} numbers per image"),
        ("images", f"{found.train_images:,} to fit, {found.test_images:,} to count"),
        ("accuracy", f"{100 * found.accuracy:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
    ]
    print_table(("", str(saved.path)), rows)
    return 0
