"""Which part of the data a file, a folder or a split is named for: the one table of such names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PART_WORDS = {
    "train": "train training trn tr",
    "validation": "validation valid val dev devel development eval evaluation vld validate",
    "test": "test tests testing tst ts te holdout",
}
"""Words for each part, in lower case."""
_PART_OF_WORD = {word: part for part, words in PART_WORDS.items() for word in words.split()}
_THINGS = (
    "sets?|data|datasets?|images?|imgs?|pics|pictures?|photos?|splits?|files?|folders?|parts?|shards?|batch(?:es)?"
)
_NEUTRAL = re.compile(rf"(?:{_THINGS}|of|seg|raw|full|final|small|crops?|cropped|resized|labell?ed|class|classes|by|x)")
_IN_TWO_WORDS = {
    r"h[oe]ld[\W_]*out": "holdout",
    r"train[\W_]*val(?![a-z])": "train",
    r"test[\W_]*dev(?![a-z])": "test",
    "t10k": "test",
}
_LONG = 3
"""Shorter words (`tr`) name a part only where nothing else is in the name."""


def part_of(name: str) -> str | None:
    """The part that a name holds a word for, in any case and among other words; `None` for none, or for several.

    Examples: `Training`, `dev.parquet`, `seg_test`, `train2017`, `01_valid`, `testData`, `wiki.train.tokens`.
    """
    words = _words(name)
    found = {_PART_OF_WORD[word] for word in words if word in _PART_OF_WORD and (len(word) >= _LONG or is_part(name))}
    return found.pop() if len(found) == 1 else None


def is_part(name: str) -> bool:
    """Whether a name says nothing but a part: `train_set` does, `train_station` does not."""
    words = _words(name)
    named = [word for word in words if word in _PART_OF_WORD]
    return bool(named) and all(word in _PART_OF_WORD or _NEUTRAL.fullmatch(word) for word in words)


def files_by_part(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Files in the order given under the part that their names or folders (below `root`) say, others under `all`."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        *folders, name = file.relative_to(root).parts
        found = {part for part in map(part_of, (*folders, name.partition(".")[0], name)) if part}
        if len(found) > 1:
            raise ValueError(
                f"{file}: its name and its folder say different parts of the data ({' and '.join(sorted(found))}); "
                "rename it"
            )
        parts.setdefault(found.pop() if found else "all", []).append(file)
    return parts


def of_no_part(file: Path, root: Path) -> str:
    """What to say of a file of no part beside files of parts."""
    return (
        f"{file}: its name says neither train, validation nor test, but those of others below {root} do; rename or "
        "remove it, or give one file"
    )


def splits_by_part(splits: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Named splits by the part that their names say, the only one as `all` where its name says none."""
    parts: dict[str, Any] = {}
    left_out = []
    for name, table in splits.items():
        part = part_of(name)
        if part is None:
            left_out.append(name)
        elif part in parts:
            several = ", ".join(one for one in splits if part_of(one) == part)
            raise ValueError(f"{where}: its splits {several} are all named for the {part} part; save one as a folder")
        else:
            parts[part] = table
    if not parts and len(splits) == 1:
        return {"all": next(iter(splits.values()))}
    if not parts:
        raise ValueError(f"{where}: its splits are {', '.join(splits)}; need train, validation or test")
    if left_out:
        logger.warning("%s: left out its splits %s", where, ", ".join(left_out))
    return parts


def _words(name: str) -> list[str]:
    """The words of a name in lower case, split at signs, numbers and inner capitals, without what names things."""
    for pattern, word in _IN_TWO_WORDS.items():
        name = re.sub(pattern, word, name, flags=re.IGNORECASE)
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return [re.sub(rf"^({'|'.join(_PART_OF_WORD)})(?:{_THINGS})$", r"\1", word) for word in words]
