"""A text to pre-train on before SST-2: WikiText-2 and, several times, the task's own training sentences.

    python benchmarks/sst2_text.py WIKITEXT_2 GLUE/SST-2 OUTPUT [--times 6]
    opencrate train wikitext2-bert text.path=OUTPUT text.document=paragraph

SST-2's training part holds phrases of its sentences too: kept are those that are part of no other. Their labels are
not read, nor is the task's dev part. A twentieth each is held out for `valid.txt` and `test.txt`, which hold sentences
only.
"""

import argparse
import csv
from pathlib import Path

import numpy as np


def main() -> None:
    """Parse arguments, write the three parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("sst2", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--times", type=int, default=6)
    arguments = parser.parse_args()
    with (arguments.sst2 / "train.tsv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        kept = whole_sentences({row["sentence"].strip() for row in rows})
    drawn = [kept[index] for index in np.random.default_rng(0).permutation(len(kept))]
    part = len(drawn) // 20
    test, valid, train = drawn[:part], drawn[part : 2 * part], drawn[2 * part :]
    encyclopaedia = (arguments.wikitext / "train.txt").read_text(encoding="utf-8")
    arguments.output.mkdir(parents=True)
    for name, text in {
        "train": "\n\n".join([encyclopaedia.strip(), *train * arguments.times]),
        "valid": "\n\n".join(valid),
        "test": "\n\n".join(test),
    }.items():
        (arguments.output / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(train):,} sentences, {arguments.times} times, after the text of WikiText-2")


def whole_sentences(phrases: set[str]) -> list[str]:
    """The phrases that are part of no longer one, longest first."""
    kept: list[str] = []
    longer = ""
    for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)):
        if phrase not in longer:
            kept.append(phrase)
            longer += f"\n{phrase}"
    return kept


if __name__ == "__main__":
    main()
