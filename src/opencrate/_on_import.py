"""Registers the models once transformers' Auto classes are imported, so that `import opencrate` alone is cheap.

The Auto classes are imported by name (``from transformers import AutoModel``), by ``pipeline``, and by our own files,
often in the middle of other modules that ours need whole. So registration waits until no module of transformers or of
this package is half imported.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # which every file of Auto classes imports
_WATCHED = ("transformers", "opencrate")


class OnAutoClasses:
    """A finder that calls `then`, once, as soon as the Auto classes and all modules around them are imported.

    It finds what the finders after it find, and adds to the loader that the end of the import is noticed. Afterwards it
    finds nothing; it stays in `sys.meta_path`, through which another import may be looping.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self.running: set[str] = set()
        """Names of the watched modules whose code runs now, in any thread."""
        self._then = then
        self._done = False

    def install(self) -> None:
        """Begin to watch; call `then` at once where the Auto classes are there."""
        sys.meta_path.insert(0, self)
        self.look()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the finders after this one give, with a loader that tells when it is done."""
        if self._done or name.partition(".")[0] not in _WATCHED:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Noticed(spec.loader, self)
        return spec

    def look(self) -> None:
        """Call `then` and end watching, if the time has come."""
        if AUTO_CLASSES in sys.modules and not self.running and not self._done:
            self._done = True
            self._then()


class _Noticed(Loader):
    """`loader`, which the module gets back before its code runs."""

    def __init__(self, loader: Loader, finder: OnAutoClasses) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._finder.running.add(module.__name__)
        try:
            self._loader.exec_module(module)
        finally:
            self._finder.running.discard(module.__name__)
        self._finder.look()
