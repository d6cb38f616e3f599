"""Open the white box of any transformer: coding rates, sparsity and attention, layer by layer.

  opencrate analyze runs/digits-seed0
  opencrate analyze runs/digits-seed0 --compare runs/digits-vit-seed0
  opencrate analyze runs/photos --data more-photos --output analysis --measures full --theory
  opencrate analyze dinov2-folder --data photos --subspaces pca
  opencrate analyze gpt2-folder --text book.txt --layers 1,6,12

MODEL is a run directory, any folder written by save_pretrained (CRATE, ViT, DINOv2, BERT, GPT-2 and models built like
them), or hf://owner/name, which is downloaded. A run is measured on the images or the text that it held out, unless
--data or --text say otherwise. Writes report.html (self-contained), layers.csv, layers.json and
figures/, by default into MODEL/analysis. The model is compared with its own start: a run's is rebuilt exactly from its
seed, any other model's is a fresh copy of seed 0. A model other than CRATE has no subspaces U; what it is measured
against instead is stated at every number.
"""

from __future__ import annotations

import argparse
from typing import Any

from .._outputs import check_results
from .._values import Natural, Positive
from .common import (
    Parser,
    inputs_of,
    layer_numbers,
    note,
    number_of,
    output_folder,
    positive_int,
    prepare_libraries,
    print_result,
    say,
)

HELP = "measure any model layer by layer and write a report"
_SUBSPACES = ("values", "keys", "pca")


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate analyze`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, saved folder, opencrate/name or hf://owner/name")
    parser.add_inputs()
    add("--compare", metavar="MODEL", nargs="+", default=[], help="models to set beside it")
    add("--output", metavar="DIR", help="folder of the report (default: MODEL/analysis)")
    add("--num-images", type=positive_int, metavar="N", help="images or texts for the layer measures (default: 256)")
    add("--measures", default="basic", metavar="SET", help="basic, full, or measures by name with commas")
    add("--layers", type=layer_numbers, metavar="L,L,...", help="layers to measure, from 1 (default: all)")
    add("--eps", type=number_of(Positive), default=0.5, help="epsilon of the coding rates (default: 0.5)")
    add("--subspaces", choices=_SUBSPACES, default="values", help="what a model without U is measured against")
    add(
        "--checkpoints",
        type=number_of(Natural),
        nargs="*",
        metavar="STEP",
        help="also measure the run's checkpoints of these steps (none named: up to four)",
    )
    add("--theory", action="store_true", help="add the check of theory against practice (CRATE)")
    add("--released-tool", action="store_true", help="add what the paper's published measuring code prints")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the report, say where it is."""
    prepare_libraries(arguments.debug)
    from ..reports.runs import ReportOptions, report_models, report_runs
    from ..store.saved import open_saved

    sources = [arguments.model, *arguments.compare]
    output = output_folder(arguments, "analysis")
    names, inputs = ("report.html", "layers.csv", "layers.json", "figures"), [*sources, arguments.data, arguments.text]
    check_results(output, names, "report.html", inputs, within=arguments.model)
    options = ReportOptions(
        eps=arguments.eps,
        num_inputs=arguments.num_images,
        measures=tuple(arguments.measures.split(",")) if "," in arguments.measures else arguments.measures,
        layers=arguments.layers,
        subspaces=arguments.subspaces,
        released_tool=arguments.released_tool,
        checkpoints=None if arguments.checkpoints is None else tuple(arguments.checkpoints),
        theory=arguments.theory,
    )
    common = {"command": arguments.typed, "options": options}
    saved = _labelled(sources, arguments)
    if saved:
        images = {"data": arguments.data, "split": arguments.split, "skip_bad": arguments.skip_bad}
        scores = report_runs(saved, output / "report.html", **images, **common)
        found = [{"model": one.name, **score.to_dict()} for one, score in zip(saved, scores)]
        lines = [
            f"{one.name}: accuracy {100 * score.top1:.2f} % on {score.num_images:,} images"
            for one, score in zip(saved, scores)
        ]
    else:
        models = [open_saved(source) for source in sources]
        boxes = report_models(models, output / "report.html", inputs=inputs_of(arguments), **common)
        found, lines = [_facts(box) for box in boxes], [_words(box) for box in boxes]
    document = {**{name.replace(".", "_"): output / name for name in names}, "models": found}
    print_result(arguments, document, lambda: say("\n".join([*lines, f"report: {output / 'report.html'}"])))
    return 0


def _facts(box: Any) -> dict[str, Any]:
    """What was measured; the numbers are in layers.json."""
    names = ("model", "model_type", "subspace_kind", "inputs")
    counts = {"num_layers": box.measures.num_layers, "num_inputs": box.measures.num_inputs}
    return {**{name: getattr(box, name) for name in names}, **counts}


def _words(box: Any) -> str:
    from ..stats.words import plural

    count = f"{plural(box.measures.num_layers, 'layer')} on {plural(box.measures.num_inputs, box.inputs[:-1])}"
    return f"{box.model}: {count}, against {box.subspace_kind}"


def _labelled(sources: list[str], arguments: argparse.Namespace) -> list[Any]:
    """The models as classifiers of labelled images; none if one is not a classifier or the images have other labels."""
    from ..store.inputs import knows_classes
    from ..store.kinds import kind_of
    from ..store.saved import open_saved

    if arguments.text is not None or any(kind_of(source) != "classifier" for source in sources):
        return []
    saved = [open_saved(source, ("classifier",)) for source in sources]
    if all(knows_classes(one, arguments.data) for one in saved):
        return saved
    note(f"{arguments.data}: not of the model's classes; all is measured without labels")
    return []
