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
from typing import Any

from .common import Parser, batch_size, positive_int, prepare_libraries, print_result, print_table, text_of

HELP = "accuracy and loss on labelled images, or loss on text"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate evaluate`."""
    add = parser.add_argument
    parser.add_model_and_images()
    parser.add_split()
    add(
        "--class-names",
        metavar="FILE",
        help="names of the model's classes: a file (one a line, or JSON), imagenet, or order (those of --data, sorted)",
    )
    parser.add_text()
    add("--lambada", metavar="FILE", help="for a language model: LAMBADA's passages, .jsonl")
    add("--context", type=positive_int, metavar="N", help="tokens read at a time (default: the model's)")
    add("--stride", type=positive_int, metavar="N", help="new tokens per window (default: half of them)")
    add("--batch-size", type=batch_size, metavar="N")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    from ..store.kinds import require_kind

    kind = require_kind(arguments.model, ("classifier", "causal", "masked"))
    reads_text = kind != "classifier"
    if reads_text and arguments.data is not None:
        raise ValueError("--data: names images; a language model is evaluated on --text or --lambada")
    if not reads_text and (arguments.text is not None or arguments.lambada is not None):
        raise ValueError(f"{arguments.model}: holds an image classifier, which reads no text; give --data IMAGES")
    prepare_libraries(arguments.debug)
    return (_evaluate_text if reads_text else _evaluate_images)(arguments)


def _evaluate_images(arguments: argparse.Namespace) -> int:
    from ..evaluation.evaluate import evaluate_images
    from ..store.saved import open_saved

    saved = open_saved(arguments.model, ("classifier",))
    options = {name: getattr(arguments, name) for name in ("data", "split", "class_names", "skip_bad")}
    found = evaluate_images(saved, **options, batch_size=arguments.batch_size or 256)
    document = {"model": arguments.model, "parameters": saved.num_parameters, **found.to_dict()}
    print_result(arguments, document, lambda: _print_images(arguments.model, found, saved.num_parameters))
    return 0


def _print_images(model: str, found: Any, parameters: int) -> None:
    low, high = found.interval
    rows = [
        ("images", f"{found.num_images:,}"),
        ("accuracy", f"{100 * found.top1:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
        *([] if found.top5 is None else [("top-5 accuracy", f"{100 * found.top5:.2f} %")]),
        ("loss", f"{found.loss:.4f} nats per image"),
        ("speed", f"{found.images_per_second:,.0f} images/s (forward)"),
        ("parameters", f"{parameters:,}"),
    ]
    print_table(("", model), rows)
    recall = zip(found.labels, found.confusion.sum(1).tolist(), found.recall.tolist())
    print_table(
        ("class", "images", "found"),
        [(name, str(count), f"{100 * share:.1f} %" if count else "–") for name, count, share in recall],
    )


def _evaluate_text(arguments: argparse.Namespace) -> int:
    """Score a language model on --text or --lambada."""
    from ..evaluation import lambada
    from ..evaluation.evaluate import evaluate_text
    from ..store.saved import open_saved

    saved = open_saved(arguments.model, ("causal", "masked"), tokenizer=arguments.tokenizer)
    found: dict[str, Any] = {}
    if arguments.text is not None or arguments.lambada is None:
        options = {name: getattr(arguments, name) for name in ("context", "stride", "batch_size")}
        found["text"] = evaluate_text(saved, text_of(arguments), **options)
    if arguments.lambada is not None:
        passages = lambada.read_lambada(arguments.lambada)
        found["lambada"] = lambada.score_lambada(saved, passages, arguments.batch_size)
    scores = {name: score.to_dict() for name, score in found.items()}
    document = {"model": arguments.model, "parameters": saved.num_parameters, **scores}
    print_result(arguments, document, lambda: _print_text(arguments, found, saved.num_parameters))
    return 0


def _print_text(arguments: argparse.Namespace, found: dict[str, Any], parameters: int) -> None:
    for name, score in found.items():
        rows = (_text_rows if name == "text" else _lambada_rows)(score)
        source = getattr(arguments, name) or "the text it held out"
        print_table(("", f"{arguments.model} on {source}"), [*rows, ("parameters", f"{parameters:,}")])


def _text_rows(score: Any) -> list[tuple[str, str]]:
    counted = f"{score.tokens:,} {'masked ' if score.kind == 'masked' else ''}tokens of {score.bytes:,} bytes"
    rows = [("text", f"{counted}, {score.documents:,} document{'' if score.documents == 1 else 's'}")]
    if score.kind == "masked":
        read = f"blocks of {score.context} tokens, 15 % masked, always the same ones"
        rows += [("loss", f"{score.loss:.4f} nats per masked token"), ("pseudo-perplexity", _large(score.perplexity))]
    else:
        read = f"windows of {score.context} tokens, {score.stride} new ones each"
        rows += [
            ("loss", f"{score.loss:.4f} nats per token"),
            ("perplexity", f"{_large(score.perplexity)} per token, {_large(score.word_perplexity)} per word"),
            ("bits per byte", f"{score.bits_per_byte:.4f}"),
        ]
    rows += [("accuracy", f"{100 * score.accuracy:.2f} % of the tokens"), ("read as", read)]
    if score.unknown:
        share = f"{score.unknown:,} tokens that the tokenizer does not know"
        rows.append(("unknown", share + ("" if score.kind == "masked" else ": bits per byte leave out what they were")))
    return rows


def _large(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"


def _lambada_rows(score: Any) -> list[tuple[str, str]]:
    low, high = score.interval
    rows = [
        ("passages", f"{score.passages:,}"),
        ("last-word accuracy", f"{100 * score.accuracy:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f})"),
        ("loss", f"{score.loss:.4f} nats per token of the last word, {score.word_loss:.4f} per last word"),
        ("perplexity", f"{_large(score.perplexity)} per last word"),
    ]
    if score.truncated:
        rows.append(("truncated", f"{score.truncated:,} passages lost their beginning to the context"))
    return rows
