"""Speed of preparing text: tokenising, and what the library adds to the tokenizer's own rate.

    python benchmarks/text_data.py [--text PATH] [--megabytes 2] [--repeats 3] [--tokenizer FOLDER ...]

The text is the first megabytes of the standard library's source, or of `--text`. For every tokenizer the rate of
`tokenizers` alone on the same pieces of text stands beside that of the whole preparation (reading the documents, tokens
and separators to disk, counting), measured in turns; the ratio says how much of the time is the tokenizer's. Then the
blocks per second that a loader makes of the tokens on disk. Medians of the repeats.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from opencrate.bench.timing import seconds_of
from opencrate.data.draws import Draw
from opencrate.data.text.cache import tokenised
from opencrate.data.text.documents import Documents, digest
from opencrate.data.text.load import load_text
from opencrate.data.text.options import TRAINED, TextData
from opencrate.data.text.sources import read_parts
from opencrate.data.text.tokenizers import encode, load_tokenizer, pieces, train_tokenizer

BATCH = 32


def texts_of(path: str, size: int) -> list[str]:
    """Whole documents of about `size` characters together."""
    found, total = [], 0
    for documents in read_parts(TextData(path)).values():
        for text in documents:
            found.append(text[: size - total])
            total += len(found[-1])
            if total >= size:
                return found
    return found


def preparation(kind: str, texts: list[str], repeats: int) -> tuple[float, float]:
    """Megabytes per second of the tokenizer alone, and of the whole preparation."""
    tokenizer = train_tokenizer(kind, texts, vocab_size=8192) if kind in TRAINED else load_tokenizer(kind)
    megabytes = len("".join(texts).encode()) / 1e6
    parts = [piece for text in texts for piece in pieces(text)]
    alone, whole = [], []
    for number in range(repeats + 1):
        documents = Documents("benchmark", lambda: iter(texts), lambda number=number: digest(kind, number))
        alone.append(seconds_of(lambda: encode(tokenizer, parts)))
        whole.append(seconds_of(lambda documents=documents: tokenised(documents, tokenizer)))
    return tuple(megabytes / statistics.median(times[1:]) for times in (alone, whole))


def blocks_per_second(path: Path, objective: str, repeats: int) -> float:
    """Training blocks of 256 tokens made in batches."""
    train = load_text(TextData(str(path), tokenizer="bytes"), objective).train
    batches = [[Draw((start + i) % len(train), 0, 0) for i in range(BATCH)] for start in range(0, 64 * BATCH, BATCH)]
    times = [seconds_of(lambda: [train.__getitems__(batch) for batch in batches]) for _ in range(repeats + 1)]
    return 64 * BATCH / statistics.median(times[1:])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", nargs="*", default=[], help="folders, beside those made from the text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPENCRATE_CACHE"] = folder
        texts = texts_of(options.text, int(options.megabytes * 1e6))
        print(f"{sum(map(len, texts)):,} characters in {len(texts)} documents of {options.text}")
        print(f"{'tokenizer':30} {'alone, MB/s':>12} {'prepared, MB/s':>15} {'tokenizer share':>16}")
        for kind in (*TRAINED, *options.tokenizer):
            alone, whole = preparation(kind, texts, options.repeats)
            print(f"{kind[-30:]:30} {alone:12.2f} {whole:15.2f} {whole / alone:16.2f}")
        file = Path(folder) / "text.txt"
        file.write_text("\n".join(texts), encoding="utf-8")
        for objective in ("causal", "masked"):
            rate = blocks_per_second(file, objective, options.repeats)
            print(f"{objective}: {rate:,.0f} blocks/s of 256 tokens, one process")


if __name__ == "__main__":
    main()
