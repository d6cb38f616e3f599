"""What commands that read text share: the options, and `opencrate evaluate` for language models."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .common import Parser, print_table


def add_text(parser: Parser) -> None:
    """--text and how it is read."""
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="for a language model: stdlib, a text, .jsonl or .parquet file, a folder of them, or hf://owner/name",
    )
    parser.add_argument("--text-column", metavar="NAME", help="column of a table's texts")
    parser.add_argument(
        "--document", choices=("file", "paragraph", "line"), default="file", help="what one document of a text file is"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer, where the model has none")


def documents_of(arguments: argparse.Namespace) -> Any:
    """The text that --text names, or what the run held out; see `training.texts`."""
    from ..data.text.options import TextData
    from ..store import texts

    named = arguments.text and TextData(arguments.text, arguments.text_column, arguments.document)
    return texts.documents_of(arguments.model, named)


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a language model on --text or --lambada, and print."""
    from ..evaluation import lambada, language

    if arguments.data is not None:
        raise ValueError("--data: names images; a language model is evaluated on --text or --lambada")
    opened = language.open_language_model(arguments.model, arguments.tokenizer)
    found: dict[str, Any] = {}
    if arguments.text is not None or arguments.lambada is None:
        found["text"] = _score(opened, arguments)
    if arguments.lambada is not None:
        passages = lambada.read_lambada(arguments.lambada)
        found["lambada"] = lambada.score_lambada(opened, passages, arguments.batch_size)
    parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    if arguments.format == "json":
        scores = {name: score.to_dict() for name, score in found.items()}
        print(json.dumps({"model": arguments.model, "parameters": parameters, **scores}))
        return 0
    for name, score in found.items():
        rows = (_text_rows if name == "text" else _lambada_rows)(score)
        source = getattr(arguments, name) or "the text it held out"
        print_table(("", f"{arguments.model} on {source}"), [*rows, ("parameters", f"{parameters:,}")])
    return 0


def _score(opened: Any, arguments: argparse.Namespace) -> Any:
    from ..evaluation.language import score_masked, score_text

    documents = documents_of(arguments)
    if opened.kind == "masked":
        if arguments.stride is not None:
            raise ValueError("--stride: of causal models; a masked one reads blocks without overlap")
        return score_masked(opened, documents, block_size=arguments.context, batch_size=arguments.batch_size)
    options = {"context": arguments.context, "stride": arguments.stride, "batch_size": arguments.batch_size}
    return score_text(opened, documents, **options)


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
