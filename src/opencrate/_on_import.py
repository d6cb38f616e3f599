"""Registers the models once transformers' Auto classes are imported, so that `import opencrate` alone imports nothing.

The Auto classes are imported by name (``from transformers import AutoModel``), by ``pipeline``, and by our own modelling
files, often in the middle of other modules that ours need whole. So registration waits until no module of transformers
or of this package is half imported.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # which every file of Auto classes imports
_WATCHED = ("transformers", "opencrate")


class OnAutoClasses:
    """A finder that calls `then`, once, as soon as the Auto classes and all modules around them are imported.

    It finds what the other finders find, and adds to the loader that the end of the import is noticed.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._running: set[str] = set()  # modules whose code runs now, in any thread

    def install(self) -> None:
        """Begin to watch; call `then` at once where the Auto classes are there."""
        sys.meta_path.insert(0, self)
        self._look()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that tells when it is done."""
        if name.partition(".")[0] not in _WATCHED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._execute, name, spec.loader.exec_module)
        return spec

    def _execute(self, name: str, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self._running.add(name)
        try:
            execute(module)
        finally:
            self._running.discard(name)
        self._look()

    def _look(self) -> None:
        if AUTO_CLASSES in sys.modules and not self._running and self in sys.meta_path:
            sys.meta_path.remove(self)
            self._then()
