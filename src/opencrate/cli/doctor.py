"""Check a model for the signs of a failed training, or of damage after it; or check the installation.

  opencrate doctor runs/digits-seed0
  opencrate doctor dinov2-folder --data photos --format json
  opencrate doctor gpt2-folder --text book.txt
  opencrate doctor --environment

MODEL is a run directory, any folder written by save_pretrained (image classifiers, backbones, masked autoencoders,
language models), or hf://owner/name, which is downloaded. Labels are used where images have the model's classes, and
are not needed. A run is checked on what it held out: its validation part where it has one, else its test part. Each
check has a threshold with its origin (docs/doctor_checks.md); what is missing is "not checked", with the reason. Exit
code: 0 no check failed, 1 at least one failed (with --strict also when one warned; findings never count), 2 bad input.

--environment checks the installation instead, and is what a bug report should show: Python, torch and its build,
devices, every package against the versions that OpenCRATE allows, extras, the packaged models' checksums, caches, and
which attention implementations work here. Something that will not work is a failed check; an untested version warns.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from .common import Parser, in_options, note, positive_int, prepare_libraries, print_result, print_table, say

HELP = "check a run for failure signatures, or the installation"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate doctor`."""
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="run directory, saved folder, opencrate/name or hf://owner/name")
    add("--environment", action="store_true", help="check the installation instead of a model")
    add(
        "--data",
        metavar="IMAGES",
        help="images, with labels or without: as a recipe's data.path, or a folder of image files (default: "
        "the run's own data)",
    )
    add("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")
    parser.add_text()
    add("--block-size", type=positive_int, default=128, metavar="N", help="tokens per text (128)")
    add("--num-images", type=positive_int, default=256, metavar="N", help="at most, images or texts (default: 256)")
    add("--strict", action="store_true", help="exit with 1 on warnings too")


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and say by the exit code."""
    if arguments.environment == (arguments.model is not None):
        raise ValueError("give a MODEL to check, or --environment to check the installation (and not both)")
    found = _installation() if arguments.environment else _diagnosis(arguments)
    print_result(arguments, found.to_dict(), lambda: _print(found))
    return 0 if found.healthy(arguments.strict) else 1


def _installation() -> Any:
    from ..analysis.doctor.installation import examine_installation

    return examine_installation(progress=note)


def _diagnosis(arguments: argparse.Namespace) -> Any:
    prepare_libraries(arguments.debug)
    from ..analysis.doctor.inputs import diagnose_saved

    names = ("data", "text", "text_column", "document", "tokenizer", "block_size", "skip_bad")
    given = {name: getattr(arguments, name) for name in names}
    found = diagnose_saved(arguments.model, num_inputs=arguments.num_images, **given)
    findings = (replace(one, evidence=in_options(one.evidence, arguments.parser)) for one in found.findings)
    return replace(found, findings=tuple(findings))


def _print(found: Any) -> None:
    from ..analysis.doctor.signatures import FAIL, FINDING, NOT_CHECKED, OK, WARN

    print_table(("check", "verdict", "evidence"), [(one.check, one.verdict, one.evidence) for one in found.findings])
    for one in found.findings:
        if one.advice:
            say(f"{one.verdict} {one.check}: {one.advice}")
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in (OK, FINDING, WARN, FAIL, NOT_CHECKED))
    say(f"{found.model}: {counts}")
