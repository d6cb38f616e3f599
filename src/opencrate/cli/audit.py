"""Check whether a model's tokens are what CRATE assumes: a mixture of Gaussians on its subspaces.

  opencrate audit runs/digits-seed0
  opencrate audit runs/digits-seed0 --compare runs/digits-vit --layers 1 3 6 --output audit
  opencrate audit dinov2-folder --data photos --output audit
  opencrate audit runs/shakespeare --text book.txt

MODEL is any model that `opencrate analyze` takes: a classifier, an autoencoder (shown whole images) or one that reads
text. Labels are not used; a run is audited on what it held out, unless --data or --text say otherwise.

Per layer: ranks, angles and overlaps of the subspaces, the dictionary's distance from orthonormal, the energy of tokens
outside the subspaces, and the held-out log-likelihood of low-rank Gaussian mixtures against one Gaussian, random
subspaces, shuffled tokens and the untrained model. For a model without learned U the subspaces are the value
projections of its heads. Writes audit.html, audit.csv, audit.json and figures/, by default into MODEL/audit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._outputs import check_results
from .common import (
    Parser,
    inputs_of,
    output_folder,
    positive_int,
    prepare_libraries,
    print_result,
    print_table,
    say,
    seed,
)

HELP = "check the subspace assumptions on a model's tokens"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate audit`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="run directory, saved folder, opencrate/name or hf://owner/name")
    parser.add_inputs()
    add("--compare", metavar="MODEL", nargs="+", default=[], help="further models, on the same inputs")
    add("--layers", metavar="L", nargs="+", type=positive_int, help="layers from 1 (default: all)")
    add("--tokens", choices=("normalised", "raw"), default="normalised", help="LN(Z) (default) or Z")
    add("--num-images", type=positive_int, metavar="N", help="images or texts, half held out (default: at most 256)")
    add("--num-tokens", type=positive_int, default=4096, metavar="N", help="tokens per fit (default: 4096)")
    add("--seed", type=seed, default=0, help="of token choice, shuffling and EM's start (default: 0)")
    add("--output", metavar="DIR", help="folder of the report (default: MODEL/audit)")
    add("--overwrite", action="store_true", help="replace an audit that lies there")


def run(arguments: argparse.Namespace) -> int:
    """Audit, write the report, print a table per model."""
    prepare_libraries(arguments.debug)
    from ..analysis.audit.audit import audit
    from ..reports.audit import FILES, audit_report
    from ..reports.audit_findings import describe
    from ..reports.html import write
    from ..store.inputs import input_batches
    from ..store.saved import open_saved

    output = output_folder(arguments, "audit")
    sources = (arguments.model, *arguments.compare)
    read = [*sources, arguments.data, arguments.text]
    check_results(output, FILES, FILES[0], read, arguments.model, arguments.overwrite)
    models = [open_saved(source) for source in sources]
    inputs = inputs_of(arguments)
    batches = [input_batches(one, inputs) for one in models]
    datasets: list[Any] = [one.dataset for one in batches]
    count = arguments.num_images or min(256, *map(len, datasets))
    audits = [
        audit(
            one.model,
            batch,
            num_images=count,
            layers=arguments.layers,
            tokens=arguments.tokens,
            num_tokens=arguments.num_tokens,
            untrained=one.untrained(),  # as a control
            name=one.title,
            data=arguments.text or arguments.data or one.own_data,
            seed=arguments.seed,
        )
        for one, batch in zip(models, batches)
    ]
    path = write(audit_report(audits, [("command", arguments.typed)]), output, arguments.overwrite)
    files = {name.replace(".", "_"): path.parent / name for name in FILES}
    models = [{**found.to_dict(), "findings": describe(found)} for found in audits]
    print_result(arguments, {**files, "models": models}, lambda: _print(audits, path))
    return 0


def _print(audits: list[Any], path: Path) -> None:
    from ..reports.audit import LAYER_NOTE, layer_frame
    from ..reports.audit_findings import describe

    for found in audits:
        say(f"{found.name}: {found.subspace_kind}, {found.token_words}, {found.num_images} {found.inputs}")
        rows = layer_frame(found)
        print_table(tuple(rows.columns), list(rows.itertuples(index=False, name=None)))
        say(LAYER_NOTE)
        for sentence in describe(found):
            say(f"- {sentence}")
        print()
    say(f"report: {path}")
