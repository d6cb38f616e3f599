"""The source of a revision: a git worktree of its own in a temporary folder, or a folder that is there already."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._files import shown

_PLACES = ("src", ".")


@contextmanager
def source_of(name: str) -> Iterator[Path]:
    """The folder to import a revision's `opencrate` from, while the block runs.

    Args:
        name: a commit, branch or tag of the repository that this package's own source stands in; or a folder that
            holds `src/opencrate` or `opencrate`.

    Raises:
        ValueError: no such revision; this package's source is in no git checkout; a folder or a revision without the
            package.
    """
    if name and Path(name).expanduser().is_dir():
        yield _package_in(Path(name).expanduser().resolve(), name)
        return
    repository = _repository(name)
    commit = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if not commit:
        raise ValueError(
            f"revision '{shown(name)}': is no commit, branch or tag of {repository}, and no folder; `git log` lists "
            "commits, and `git branch` branches"
        )
    with tempfile.TemporaryDirectory(prefix="opencrate-bench-") as folder:
        tree = Path(folder) / "source"
        try:
            # no hooks: a checkout for timing is none of the user's own
            done = _run(repository, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit)
            if done.returncode:
                raise ValueError(f"revision '{shown(name)}': git cannot check it out: {_last_line(done.stderr)}")
            yield _package_in(tree, name)
        finally:
            _run(repository, "worktree", "remove", "--force", str(tree))


def _package_in(folder: Path, name: str) -> Path:
    for place in _PLACES:
        if (folder / place / "opencrate" / "__init__.py").is_file():
            return (folder / place).resolve()
    raise ValueError(f"revision '{shown(name)}': holds no src/opencrate; give another revision or folder")


def _repository(name: str) -> Path:
    own = Path(__file__).resolve()
    try:
        top = _git(own.parent, "rev-parse", "--show-toplevel")
        tracked = bool(top) and _git(own.parent, "ls-files", str(own.parents[1] / "__init__.py"))
    except OSError:
        raise ValueError(
            f"revision '{shown(name)}': git is not installed, which looks revisions up; install it, or give two folders"
        ) from None
    if not tracked:
        raise ValueError(
            f"revision '{shown(name)}': this installation of opencrate ({own.parents[1]}) is not in a git checkout of "
            "the project; run from a clone, or give two folders that hold src/opencrate"
        )
    return Path(top)


def _git(folder: Path, *words: str) -> str:
    """What git prints; nothing where it fails."""
    done = _run(folder, *words)
    return "" if done.returncode else done.stdout.strip()


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
