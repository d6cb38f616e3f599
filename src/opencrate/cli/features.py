"""Look at the features of a model: where they fire, and how well a simple explanation fits.

  opencrate features runs/stdlib-lm
  opencrate features runs/stdlib-lm --text stdlib
  opencrate features runs/crate-lm --text book.txt --compare runs/gpt2 --num-features 50 --layers 1,6,12
  opencrate features runs/crate-lm --text book.txt --steer 2:17=4.0 --prompt "The "
  opencrate features runs/cifar10 --num-images 2000 --layers 1,6
  opencrate features runs/cifar10 --data photos/ --compare runs/cifar10-vit

The features of a CRATE are its sparse codes, those of another model its MLP's neurons. They are drawn at random, and
looked at on --text or on what the run held out, those of a vision model on --data. Of a language model the page shows
contexts, the tokens that a feature promotes, and steering; of a vision model the image patches that make each feature
fire most, and where the images have the model's classes, how well it tells one. Writes features.html (self-contained,
with a search) and features.json, by default into MODEL/features.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any

from .._outputs import check_results
from .._values import Natural, Within, fitted, number_in, shown_value
from .common import (
    Parser,
    layer_numbers,
    output_folder,
    positive_int,
    prepare_libraries,
    print_result,
    say,
    seed,
    text_of,
)

HELP = "what single features of a model respond to"
_VISION = ("classifier", "features", "autoencoder", "other")


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate features`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, saved folder, opencrate/name or hf://owner/name")
    parser.add_text()
    add("--data", metavar="IMAGES", help="for a vision model: images, as a recipe's data.path (default: the run's own)")
    parser.add_split()
    add("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")
    add("--num-images", type=positive_int, default=1000, metavar="N", help="of the images (default: 1,000)")
    add("--compare", metavar="MODEL", nargs="+", default=[], help="models of the same tokenizer, or vision models")
    add("--layers", type=layer_numbers, metavar="L,L,...", help="layers, from 1 (default: all)")
    add("--num-features", type=positive_int, default=30, metavar="N", help="drawn per layer (default: 30)")
    add("--num-tokens", type=positive_int, default=1 << 16, metavar="N", help="of the text (default: 65,536)")
    add("--block-size", type=positive_int, default=128, metavar="N", help="tokens read at a time (default: 128)")
    add("--seed", type=seed, default=0, help="of the draws (default: 0)")
    add(
        "--steer",
        type=_steer,
        action="append",
        metavar="LAYER:FEATURE=VALUE",
        help="set this feature (default: the first drawn one of each layer that fires, to 10 times its largest value)",
    )
    add("--prompt", default="", help="what the texts with a feature set begin with")
    add("--output", metavar="DIR", help="folder of the page (default: MODEL/features)")


def run(arguments: argparse.Namespace) -> int:
    """Draw, score, steer and write."""
    from ..store.kinds import LANGUAGE, require_kind, wrong_kind

    sources = [arguments.model, *arguments.compare]
    folder = output_folder(arguments, "features")
    read = [*sources, arguments.text, arguments.data, arguments.tokenizer]
    names = ("features.html", "features.json", "features.csv", "figures")
    check_results(folder, names, names[0], read, within=arguments.model)
    for source in sources:
        require_kind(source, (*LANGUAGE, *_VISION))
    prepare_libraries(arguments.debug)
    from ..reports.html import write
    from ..store.saved import open_saved

    opened = [open_saved(source, (*LANGUAGE, *_VISION), tokenizer=arguments.tokenizer) for source in sources]
    for one in opened:
        if one.reads == "texts" and one.kind not in LANGUAGE:
            raise wrong_kind(one.source, type(one.model).__name__, one.kind, LANGUAGE)
    for other in opened[1:]:
        if other.reads != opened[0].reads:
            raise ValueError(f"--compare {other.source}: reads {other.reads}, {opened[0].source} {opened[0].reads}")
    found = _of_texts if opened[0].reads == "texts" else _of_images
    report, sentences = found(opened, arguments)
    page = write(report, folder, overwrite=True)
    document = {"page": page, **report.files["features.json"], "findings": sentences}
    print_result(arguments, document, lambda: say("\n".join([*sentences, f"page: {page}"])))
    return 0


def _of_texts(opened: list[Any], arguments: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """The page of language models and its sentences."""
    from ..analysis.features.find import find_features
    from ..analysis.features.steer import steer_each
    from ..data.text.tokenizers import tokenizer_identity
    from ..reports.features import describe, features_report
    from ..store.inputs import documents_of

    if arguments.data is not None:
        raise ValueError(f"{opened[0].source}: a model that reads text; give --text TEXT (and no --data)")
    for other in opened[1:]:
        if tokenizer_identity(other.tokenizer) != tokenizer_identity(opened[0].tokenizer):
            raise ValueError(f"--compare {other.source}: has another tokenizer than {opened[0].source}")
    documents = documents_of(arguments.model, text_of(arguments))
    reports = [
        find_features(
            model,
            documents,
            layers=arguments.layers,
            num_features=arguments.num_features,
            num_tokens=arguments.num_tokens,
            block_size=min(arguments.block_size, *(each.context for each in opened)),
            seed=arguments.seed,
            name=name,
        )
        for model, name in zip(opened, _names(opened))
    ]
    steered = []
    if opened[0].kind == "causal":
        steered = steer_each(opened[0], reports[0], documents, arguments.steer, arguments.prompt, arguments.seed)
    record = [("command", arguments.typed), ("text", documents.where)]
    return features_report(reports, steered, record), describe(reports, steered)


def _of_images(opened: list[Any], arguments: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """The page of vision models and its sentences."""
    from ..analysis.features.images import feature_images
    from ..analysis.features.patches import find_patch_features
    from ..reports.patch_features import describe, patch_features_report
    from ..store.inputs import Inputs

    if arguments.steer or arguments.prompt:
        raise ValueError(f"{opened[0].source}: a model that reads images; --steer and --prompt are for texts")
    inputs = Inputs(arguments.data, arguments.split, arguments.skip_bad, arguments.text)
    reports = []
    for model, name in zip(opened, _names(opened)):
        batches, count, labelled, where = feature_images(model, inputs, arguments.num_images, arguments.seed)
        reports.append(
            find_patch_features(
                model,
                batches,
                layers=arguments.layers,
                num_features=arguments.num_features,
                num_inputs=count,
                labelled=labelled,
                seed=arguments.seed,
                name=name,
                where=where,
            )
        )
    record = [("command", arguments.typed), ("images", reports[0].where)]
    return patch_features_report(reports, record), describe(reports)


def _names(opened: list[Any]) -> list[str]:
    """Type and folder of each model, numbered where two are alike."""
    names = [f"{one.model.config.model_type} ({Path(one.source).resolve().name})" for one in opened]
    return [name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, start=1)]


def _steer(text: str) -> tuple[int, int, float]:
    """argparse type: LAYER:FEATURE=VALUE."""
    place, _, value = text.partition("=")
    layer, _, feature = place.partition(":")
    try:
        layer, feature = (fitted(number_in(number), Natural) for number in (layer, feature))
        return layer, feature, fitted(number_in(value), Annotated[float, Within(-1e6, 1e6)])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{shown_value(text)} is not of the form LAYER:FEATURE=VALUE, such as 2:17=4.0"
        ) from None
