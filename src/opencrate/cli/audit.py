"""Check whether a model's tokens are what CRATE assumes: a mixture of Gaussians on its subspaces.

  opencrate audit runs/digits-seed0
  opencrate audit runs/digits-seed0 --compare runs/digits-vit --layers 1 3 6 --output audit

Per layer: ranks, angles and overlaps of the subspaces, the dictionary's distance from orthonormal, the energy of tokens
outside the subspaces, and the held-out log-likelihood of low-rank Gaussian mixtures against one Gaussian, random
subspaces, shuffled tokens and the untrained model. For a model without learned U the subspaces are the value
projections of its heads. Writes audit.html, audit.csv, audit.json and figures/, by default into RUN/audit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import Parser, add_model_and_images, add_split, positive_int, prepare_libraries, print_table, seed

HELP = "check the subspace assumptions on a model's tokens"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate audit`."""
    add_model_and_images(parser)
    add_split(parser)
    parser.add_argument("--compare", metavar="RUN", nargs="+", default=[], help="further models, on the same images")
    parser.add_argument("--layers", metavar="L", nargs="+", type=positive_int, help="layers from 1 (default: all)")
    parser.add_argument("--tokens", choices=("normalised", "raw"), default="normalised", help="LN(Z) (default) or Z")
    parser.add_argument(
        "--num-images", type=positive_int, metavar="N", help="images, half of them held out (default: at most 256)"
    )
    parser.add_argument(
        "--num-tokens", type=positive_int, default=4096, metavar="N", help="tokens per fit (default: 4096)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of token choice, shuffling and EM's start (default: 0)")
    parser.add_argument("--output", metavar="DIR", help="folder of the report (default: RUN/audit)")
    parser.add_argument("--overwrite", action="store_true", help="replace an audit that lies there")


def run(arguments: argparse.Namespace) -> int:
    """Audit, write the report, print a table per model."""
    prepare_libraries(arguments.debug)
    from ..analysis.audit_report import LAYER_NOTE, check_free, layer_rows, save_audit
    from ..training.saved import open_saved

    saved = [open_saved(path) for path in (arguments.model, *arguments.compare)]
    output = Path(arguments.output) if arguments.output else saved[0].path / "audit"
    check_free(output, arguments.overwrite)
    images = saved[0].images(arguments.data, arguments.split, arguments.skip_bad)
    num_images = arguments.num_images or min(256, len(images))
    reports = [_audit(one, images, num_images, arguments) for one in saved]
    path = save_audit(reports, output, record=[("command", arguments.typed)], overwrite=arguments.overwrite)
    for report in reports:
        print(f"{report.name}: {report.subspace_kind}, {report.token_words}, {report.num_images} images")
        print_table(*layer_rows(report))
        print(LAYER_NOTE)
        for sentence in report.summary():
            print(f"- {sentence}")
        print()
    print(f"report: {path}")
    return 0


def _audit(saved, images, num_images: int, arguments: argparse.Namespace):
    """One model's audit, with the same model untrained as a control."""
    from ..analysis.audit import audit
    from ..analysis.whitebox import untrained_copy
    from ..training import runs

    untrained = runs.initial_model(saved.path) if saved.recipe else untrained_copy(saved.model, seed=0)
    return audit(
        saved.model,
        saved.batches(images),
        num_images=num_images,
        layers=arguments.layers,
        tokens=arguments.tokens,
        num_tokens=arguments.num_tokens,
        untrained=untrained.to(saved.model.device).eval(),
        name=saved.title,
        data=arguments.data or (saved.recipe.data.path if saved.recipe else ""),
        seed=arguments.seed,
    )
