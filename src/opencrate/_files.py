"""Files and names that somebody else made: read within bounds, and shown without their control characters.

Nothing here needs a library, so that the command line can use it at once.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ._weights import is_packaged_name, not_packaged, packaged_folder

HUB_PREFIX = "hf://"
"""Before the name of a model or data set of the Hugging Face Hub."""
CONFIG = "config.json"
LOCAL = {"local_files_only": True}
"""The order to `from_pretrained` not to use the network."""
JSON_LIMIT = 256 << 20
"""Bytes of a JSON file; the largest tokenizers have some 30 million."""
_SHOWN = 200
_LINE = 1000
_MEMORY_SHARE = 0.5
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_KINDS |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_JSON_WORDS = {dict: "a mapping", list: "a list"}

Kind = TypeVar("Kind", dict, list)


def shown(value: Any, limit: int = _SHOWN) -> str:
    """A name or a text from a file for a message: one line, printable, the middle left out of a long one.

    >>> shown("a\\nb")
    'a\\\\nb'
    """
    return _shortened(_printable(str(value)), limit)


def one_line(text: str) -> str:
    """A whole message in one printable line; very long words and lines lose their middle."""
    words = (_shortened(word, _SHOWN) for word in _printable(" ".join(text.split())).split(" "))
    return _shortened(" ".join(words), _LINE)


def printable(text: str) -> str:
    """A text with every control character and every byte that is no UTF-8 escaped; its lines stay."""
    return "\n".join(_printable(line) for line in text.split("\n"))


def is_text(name: str) -> bool:
    """Whether a name holds no control characters, line ends, changes of direction or bytes that are no UTF-8."""
    return not _CONTROLS.search(name) and not {"\t", "\n"} & set(name)


def encoded(text: str) -> bytes:
    """A text as UTF-8 for a page or a table, with control characters and non-text bytes escaped; layout stays."""
    return _CONTROLS.sub(lambda found: _printable(found[0]), text).encode("utf-8")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    # Bytes of a file name that are no UTF-8 are lone surrogates in Python.
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2 - 10
    return f"{text[:half]}...({len(text)} characters)...{text[-half:]}"


def require_file(path: str | Path, what: str = "a file", name: str | None = None) -> Path:
    """The path of a regular file: no folder, and no pipe, socket or device that would never end.

    Messages say `what` it has to be, and call it `name`, by default its path.

    Raises:
        ValueError: anything else, nothing, or a file that may not be read.
    """
    path, name = Path(path).expanduser(), name or shown(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        why = "is a link to nothing" if path.is_symlink() else "no such file"
        raise ValueError(f"{name}: {why}; give {what}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {os_reason(error)}; give {what}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: is {kind_of(path)}; give {what}, a regular file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{name}: may not be read; change its permissions or give another")
    return path


def path_problem(path: str | Path) -> str | None:
    """Why the system does not find a path, if so."""
    try:
        return None if Path(path).expanduser().exists() else "no such file or folder"
    except (OSError, ValueError) as error:
        return os_reason(error)


def kind_of(path: Path) -> str:
    """What an existing path is, in words."""
    mode = os.stat(path).st_mode
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def os_reason(error: Exception) -> str:
    """What the system says about a path, in lower case and without its number."""
    words = getattr(error, "strerror", None) or str(error)
    return words[:1].lower() + words[1:]


def read_bytes(path: str | Path, what: str = "a file", limit: int | None = None) -> bytes:
    """A regular file's content, of at most `limit` bytes (by default half of the free memory).

    Raises:
        ValueError: as `require_file`, or a file that is too large.
    """
    path = require_file(path, what)
    check_size(path, os.path.getsize(path), limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{shown(path)}: {os_reason(error)}; give {what}") from error


def check_size(path: str | Path, size: int, limit: int | None = None) -> None:
    """Refuse a file that takes more bytes of memory than `limit` (by default half of what is free): a `ValueError`."""
    allowed = int(_MEMORY_SHARE * free_memory()) if limit is None else limit
    if size > allowed:
        raise ValueError(
            f"{shown(path)}: takes {size:,} bytes, but at most {allowed:,} are read here; give a smaller file"
        )


def free_memory() -> int:
    """Bytes of memory that a process may still take."""
    import psutil

    return psutil.virtual_memory().available


def read_limited(stream: BinaryIO, path: str | Path, limit: int | None = None) -> bytes:
    """A stream to its end, as long as it has no more than `limit` bytes (by default half of the free memory).

    Raises:
        ValueError: it has more, as a file that unpacks to a thousand times its size.
    """
    allowed = int(_MEMORY_SHARE * free_memory()) if limit is None else limit
    content = stream.read(allowed + 1)
    if len(content) > allowed:
        raise ValueError(f"{shown(path)}: holds more than {allowed:,} bytes; give a smaller one")
    return content


def read_standard_input(limit: int = 64 << 20) -> str:
    """Everything on standard input, as requested by `-`.

    Raises:
        ValueError: more than `limit` characters, or bytes that are no UTF-8.
    """
    try:
        text = sys.stdin.read(limit + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"'-': standard input is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if len(text) > limit:
        raise ValueError(f"'-': standard input has more than {limit:,} characters; give less at a time")
    return text


def read_json(path: str | Path, kind: type[Kind] = dict, advice: str = "replace it") -> Kind:
    """The mapping or list (`kind`) in a JSON file; `advice` is what to do with a damaged one.

    Raises:
        ValueError: not there, not to be read, not UTF-8, not JSON, nested too deep, or something else than `kind`.
    """
    return parse_json(read_bytes(path, "a JSON file", JSON_LIMIT), shown(path), kind, advice)


def folder_of(source: str | os.PathLike) -> Path:
    """The folder that a path names, or `opencrate/name` of a model in the package opencrate-weights.

    Raises:
        ValueError: a name that is not installed, or a damaged model of the package.
    """
    if not is_packaged_name(source):
        return Path(str(source)).expanduser()
    folder = packaged_folder(source)
    if folder is None:
        raise not_packaged(shown(source))
    return folder


def locate(source: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is to be given: a Hub id, or a folder and the order not to use the network.

    Raises:
        ValueError: no such folder, or one without a `config.json`; or as `folder_of`.
    """
    text = str(source)
    if text.startswith(HUB_PREFIX):
        return text.removeprefix(HUB_PREFIX), {}
    folder = folder_of(text)
    try:
        found = (folder / CONFIG).is_file()
        what = "holds no config.json" if folder.is_dir() else "is not a folder" if folder.exists() else "no such folder"
    except OSError as error:
        found, what = False, os_reason(error)
    if not found:
        raise ValueError(
            f"{shown(source)}: {what}; give a run directory, a folder written by save_pretrained, or hf://owner/name"
        )
    return str(folder), dict(LOCAL)


def read_config_file(source: str | os.PathLike) -> dict[str, Any]:
    """What a folder's config.json holds, its `architectures` a list of names.

    timm's, which names an `architecture` of its own, gets the class that it is read as, and no classes if it has none.

    Raises:
        ValueError: no folder, or a damaged file.
    """
    where, _ = locate(source)
    fields = read_json(Path(where) / CONFIG, advice="give a folder written by save_pretrained")
    if "pretrained_cfg" in fields and "model_type" not in fields:
        without = {"id2label": {}} if fields.get("num_classes") == 0 else {}
        fields = {"architectures": ["ViTForImageClassification"], **without, **fields}
    named = fields.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(
            f"{shown(Path(where) / CONFIG)}: 'architectures' is {shown(named)}; it must be a list of class names"
        )
    return fields


def parse_json(content: bytes | str, where: str, kind: type[Kind] = dict, advice: str = "replace it") -> Kind:
    """The mapping or list in a JSON text; as `read_json`."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"{where}: damaged (nested too deep); {advice}") from None
    except ValueError as error:
        reason = f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else "not JSON"
        if isinstance(error, UnicodeDecodeError):
            reason = f"not UTF-8 text, at byte {error.start}"
        raise ValueError(f"{where}: damaged ({reason if content.strip() else 'empty'}); {advice}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{where}: damaged (holds {shown(json.dumps(value), 40)}, not {_JSON_WORDS[kind]}); {advice}")
    return value
