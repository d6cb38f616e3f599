"""docs/api.md is what `python docs/make_api.py` writes."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def make_api():
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current():
    assert make_api().page() == (DOCS / "api.md").read_text(encoding="utf-8"), "run `make pages`"


def test_signatures_are_shown_in_few_words():
    def f(self, a: "torch.Tensor", b: "int | None" = None, *, c: str = "x") -> "list[numpy.ndarray]":  # noqa: F821
        """Not shown."""

    api = make_api()
    assert api.call("f", f) == "f(a: Tensor, b: int | None = None, *, c: str = 'x') -> list[ndarray]"
    assert str(api.words("Annotated[int, Within(least=1, most=2)]")) == "int"
    assert str(api.words("Optional[Literal['a', 'b']]")) == "Literal['a', 'b'] | None"
