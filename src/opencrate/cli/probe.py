"""How well a frozen model's tokens predict the classes of labelled images.

  opencrate probe runs/digits-seed0
  opencrate probe runs/cifar10-seed0 --data flowers --method knn --layer 4 --token mean
  opencrate probe runs/cifar10-mae-seed0 --untrained
  opencrate probe runs/cifar10-dino-seed0 --method knn --weights exp

A classifier that does not change the model is fitted on the training images and evaluated on the test images:
logistic regression on standardised features, its regularisation chosen on held-out training images (linear), or the 20
nearest neighbours by cosine (knn), whose votes count alike or exp(cos/0.07). RUN is a classifier, an image encoder of
self-supervised training, or a masked autoencoder (CRATE's or transformers' ViTMAE), whose encoder is shown whole
images. Without --data, the run's own images are used; other images may have other classes than the model. Tokens are
the layer's output as it is, without the norm that follows the last one.
"""

from __future__ import annotations

import argparse
from typing import Any

from .._values import Natural
from .common import Parser, batch_size, number_of, prepare_libraries, print_result, print_table

HELP = "linear or nearest-neighbour probe of a layer's tokens"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate probe`."""
    parser.add_model_and_images()
    parser.add_argument("--method", choices=("linear", "knn"), default="linear", help="default: linear")
    parser.add_argument("--weights", choices=("equal", "exp"), help="of the votes of --method knn (default: equal)")
    parser.add_argument("--layer", type=number_of(Natural), metavar="L", help="0 is the embedding (default: the last)")
    parser.add_argument("--token", choices=("cls", "mean"), help="default: the token that the model's head reads")
    parser.add_argument("--untrained", action="store_true", help="also probe the model as it was before training")
    parser.add_argument("--batch-size", type=batch_size, default=256, metavar="N")


def run(arguments: argparse.Namespace) -> int:
    """Probe and print."""
    from ..store.kinds import require_kind

    kinds = ("classifier", "features", "autoencoder")
    if arguments.weights is not None and arguments.method != "knn":
        raise ValueError(f"--weights {arguments.weights}: is for --method knn; leave it out")
    require_kind(arguments.model, kinds)
    prepare_libraries(arguments.debug)
    from ..evaluation.probe import features, last_layer, probe
    from ..store.inputs import probe_images
    from ..store.saved import open_saved

    saved = open_saved(arguments.model, kinds)
    layer = last_layer(saved.model) if arguments.layer is None else arguments.layer
    token = arguments.token or getattr(saved.model.config, "pool", None) or "cls"
    parts = probe_images(saved, arguments.data, arguments.skip_bad)
    batches = [saved.batches(part, arguments.batch_size) for part in parts]
    models = {"trained": saved.model, **({"untrained": saved.untrained()} if arguments.untrained else {})}
    found = {}
    for name, model in models.items():
        train, test = (features(model, part, layer, token) for part in batches)
        found[name] = probe(train, test, arguments.method, layer, token, weights=arguments.weights or "equal")
    reference = {"untrained": found["untrained"].to_dict()} if arguments.untrained else {}
    document = {"model": arguments.model, **found["trained"].to_dict(), **reference}
    print_result(arguments, document, lambda: _print(arguments.model, found))
    return 0


def _print(model: str, found: dict[str, Any]) -> None:
    one = found["trained"]
    rows = [
        ("probe", f"{one.method}{_weights(one)}, layer {one.layer}, token {one.token}, {one.width} numbers per image"),
        ("images", f"{one.train_images:,} to fit, {one.test_images:,} to count"),
        *(("accuracy" if name == "trained" else name, _accuracy(result)) for name, result in found.items()),
    ]
    print_table(("", model), rows)


def _weights(found: Any) -> str:
    return " with votes exp(cos/0.07)" if found.weights == "exp" else ""


def _accuracy(found: Any) -> str:
    low, high = found.interval
    chosen = "" if found.regularisation is None else f"; C = {found.regularisation:g}"
    return f"{100 * found.accuracy:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f}{chosen})"
