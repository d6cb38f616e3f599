"""Evaluate a trained classifier on labelled images, or a language model on text.

  opencrate evaluate runs/digits-seed0
  opencrate evaluate runs/photos --data more-photos --format json
  opencrate evaluate crate-tiny --data ILSVRC2012/val --class-names imagenet
  opencrate evaluate runs/wikitext --stride 128
  opencrate evaluate runs/wikitext --text other-text.txt
  opencrate evaluate gpt2-folder --lambada lambada_test.jsonl

Without --data or --text, the run's own held-out images or text are used. Images given by --data (an image folder,
parquet, IDX or CIFAR binary files, hf://owner/name) have the model's class names; their test (else validation) part is
used where they have one. A converted checkpoint may have no class names: --class-names gives them by a file, by
ImageNet's list of WordNet numbers, or by the order of the class folders (which must be as many as the model's classes).

A causal model's text is read in windows of --context tokens, each moved by --stride (default: half of it); every token
is counted once: loss in nats, perplexity, bits per byte of UTF-8. A masked model has to guess 15 % of the tokens,
always the same ones. --lambada takes LAMBADA's passages as .jsonl: loss and accuracy of the last word.
"""

from __future__ import annotations

import argparse
import json

from . import language
from .common import (
    Parser,
    add_model_and_images,
    add_split,
    batch_size,
    positive_int,
    prepare_libraries,
    print_table,
)

HELP = "accuracy and loss on labelled images, or loss on text"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate evaluate`."""
    add_model_and_images(parser)
    add_split(parser)
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the model's classes: a file (one a line, or JSON), imagenet, or order (those of --data, sorted)",
    )
    language.add_text(parser)
    parser.add_argument("--lambada", metavar="FILE", help="for a language model: LAMBADA's passages, .jsonl")
    parser.add_argument(
        "--context", type=positive_int, metavar="N", help="tokens read at a time (default: the model's)"
    )
    parser.add_argument(
        "--stride", type=positive_int, metavar="N", help="new tokens per window (default: half of them)"
    )
    parser.add_argument("--batch-size", type=batch_size, metavar="N")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    prepare_libraries(arguments.debug)
    from ..evaluation.classifier import evaluate_classifier
    from ..store.kinds import require_kind
    from ..store.saved import open_saved

    kind = require_kind(arguments.model, ["classifier", "causal", "masked"])
    if kind != "classifier":
        return language.evaluate(arguments)
    if arguments.text is not None or arguments.lambada is not None:
        raise ValueError(f"{arguments.model}: holds an image classifier, which reads no text; give --data IMAGES")

    saved = open_saved(arguments.model)
    if arguments.class_names is not None:
        saved.name_classes(arguments.class_names, arguments.data)
    images = saved.images(arguments.data, arguments.split, arguments.skip_bad)
    found = evaluate_classifier(saved.model, saved.batches(images, arguments.batch_size or 256))
    if arguments.format == "json":
        print(json.dumps({"model": arguments.model, "parameters": saved.num_parameters, **found.to_dict()}))
        return 0
    low, high = found.interval
    rows = [
        ("images", f"{found.num_images:,}"),
        ("accuracy", f"{100 * found.top1:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
        *([] if found.top5 is None else [("top-5 accuracy", f"{100 * found.top5:.2f} %")]),
        ("loss", f"{found.loss:.4f} nats per image"),
        ("speed", f"{found.images_per_second:,.0f} images/s (forward)"),
        ("parameters", f"{saved.num_parameters:,}"),
    ]
    print_table(("", arguments.model), rows)
    recall = zip(found.labels, found.confusion.sum(1).tolist(), found.recall.tolist())
    print_table(
        ("class", "images", "found"),
        [(name, str(count), f"{100 * share:.1f} %" if count else "–") for name, count, share in recall],
    )
    return 0
