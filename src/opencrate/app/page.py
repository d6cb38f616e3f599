"""The page: which inputs lead to which function. Nothing is computed here, and nothing else imports gradio's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..reports.html import fragment, fragment_style
from ..store.kinds import LANGUAGE
from ._gradio import load_gradio
from .errors import PageError, in_one_line
from .images import look
from .measured import analyze_upload, compare
from .shelf import Shelf, num_layers
from .texts import MAX_NEW_TOKENS, fill_in, go_on, word_features
from .uploads import FORMATS, MEGABYTE, MODEL_SUFFIXES

TITLE = "OpenCRATE"
PASSAGE = (
    "The king is here, and the king is tired. The queen has asked the king to rest, but the king will not rest. "
    "A messenger comes from the north with a letter for the king. The letter says that the old bridge is gone, that "
    "the river is high, and that no one can cross it before the spring. The king reads the letter twice, folds it, "
    "and gives it to the queen. She reads it, looks at the fire for a while, and says that the spring is not far away."
)


def build(shelf: Shelf, max_upload: int = 100) -> Any:
    """The page as gradio's Blocks.

    Args:
        shelf: the models that it offers.
        max_upload: MB of an uploaded file, and of the files of a model together.

    Raises:
        ValueError: gradio is not installed.
    """
    gr = load_gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 1800)) as page:
        gr.Markdown(f"# {TITLE}\nWhat the layers of a white-box transformer make of a picture or a text.")
        with gr.Tabs():
            if shelf.names(reads="images"):
                with gr.Tab("Picture"):
                    _picture_tab(gr, shelf)
            if shelf.names(LANGUAGE):
                with gr.Tab("Text"):
                    _text_tab(gr, shelf)
            if len(shelf.models) > 1:
                with gr.Tab("Compare"):
                    _compare_tab(gr, shelf)
            with gr.Tab("Your model"):
                _upload_tab(gr, max_upload)
    return page


def _picture_tab(gr: Any, shelf: Shelf) -> None:
    names = shelf.names(reads="images")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = gr.Dropdown(names, value=names[0], label="Model")
            picture = _picture(gr)
            _examples(gr, picture)
        with gr.Column(scale=1, min_width=280):
            layer = _layer(gr, shelf, model, names[0], "of heads, masks and atoms")
            patches = gr.Slider(
                8, 40, value=20, step=4, label="Patches", info="along the shorter side: more take longer"
            )
            masks = gr.Slider(1, 5, value=3, step=1, label="Objects", info="that MaskCut looks for, at most")
            words = "share of the patches that an autoencoder fills in"
            shown = bool(shelf.names(("autoencoder",)))
            ratio = gr.Slider(0.1, 0.9, value=0.75, step=0.05, label="Hidden", info=words, visible=shown)
            button = gr.Button("Look inside", variant="primary")
    found = gr.HTML()

    def run(name: str, *arguments: Any) -> str:
        return fragment(look(shelf[name], name, *arguments))

    _on(gr, shelf, button.click, run, [model, picture, layer, patches, masks, ratio], found)


def _text_tab(gr: Any, shelf: Shelf) -> None:
    if shelf.names(("causal",)):
        _go_on(gr, shelf, shelf.names(("causal",)))
    if shelf.names(("masked",)):
        _fill_in(gr, shelf, shelf.names(("masked",)))
    _word(gr, shelf, shelf.names(LANGUAGE))


def _go_on(gr: Any, shelf: Shelf, names: list[str]) -> None:
    gr.Markdown("### Go on with a text")
    model = gr.Dropdown(names, value=names[0], label="Model")
    prompt = gr.Textbox("ROMEO:\n", lines=2, label="Beginning")
    with gr.Row():
        length = gr.Slider(1, MAX_NEW_TOKENS, value=100, step=1, label="New tokens")
        temperature = gr.Slider(0, 2, value=0.8, step=0.1, label="Temperature", info="0: the most probable token")
        seed = gr.Number(0, precision=0, minimum=0, label="Seed")
    button = gr.Button("Go on", variant="primary")
    out = gr.Textbox(label="Text", lines=4)

    def run(name: str, *arguments: Any) -> str:
        return go_on(shelf[name], *arguments)

    _on(gr, shelf, button.click, run, [model, prompt, length, temperature, seed], out)


def _fill_in(gr: Any, shelf: Shelf, names: list[str]) -> None:
    gr.Markdown("### Fill in what is hidden")
    model = gr.Dropdown(names, value=names[0], label="Model")
    mask = shelf[names[0]].tokenizer.mask_token
    text = gr.Textbox(f"The king {mask} here.", lines=2, label=f"Text with {mask}")
    button = gr.Button("Fill in", variant="primary")
    found = gr.HTML()

    def run(name: str, *arguments: Any) -> str:
        return fragment(fill_in(shelf[name], *arguments))

    _on(gr, shelf, button.click, run, [model, text], found)


def _word(gr: Any, shelf: Shelf, names: list[str]) -> None:
    gr.Markdown("### Features of a word")
    model = gr.Dropdown(names, value=names[0], label="Model")
    text = gr.Textbox(PASSAGE, lines=4, label="Text")
    with gr.Row():
        word = gr.Textbox("king", label="Word in the text")
        layer = _layer(gr, shelf, model, names[0])
    button = gr.Button("Find features", variant="primary")
    found = gr.HTML()

    def run(name: str, *arguments: Any) -> str:
        return fragment(word_features(shelf[name], *arguments))

    _on(gr, shelf, button.click, run, [model, text, word, layer], found)


def _compare_tab(gr: Any, shelf: Shelf) -> None:
    names = list(shelf.models)
    with gr.Row():
        first = gr.Dropdown(names, value=names[0], label="Model")
        second = gr.Dropdown(names, value=names[1], label="Beside it")
    with gr.Row():
        with gr.Column(min_width=280):
            picture = _picture(gr)
            _examples(gr, picture)
        text = gr.Textbox(PASSAGE, lines=6, label="Text, for models that read texts")
    button = gr.Button("Compare", variant="primary")
    found = gr.HTML()

    def run(one: str, other: str, *arguments: Any) -> str:
        return fragment(compare([(name, shelf[name]) for name in (one, other)], *arguments))

    _on(gr, shelf, button.click, run, [first, second, picture, text], found)


def _upload_tab(gr: Any, max_upload: int) -> None:
    kinds = ", ".join(MODEL_SUFFIXES)
    gr.Markdown(
        "The report of `opencrate analyze` for any CRATE, ViT, DINOv2, BERT, GPT-2, ... of transformers. Give a zip "
        f"file of a folder written by `save_pretrained`, or its files ({kinds}), at most {max_upload} MB together. "
        "Weights are read from safetensors only. Nothing in the files is executed, and what was unpacked is deleted."
    )
    files = gr.File(file_count="multiple", file_types=[".zip", *MODEL_SUFFIXES], label="Model", height=140)
    text = gr.Textbox(PASSAGE, lines=4, label="Text, for models that read texts")
    button = gr.Button("Analyze", variant="primary")
    found = gr.HTML()

    def run(given: Sequence[str] | None, words: str) -> str:
        return fragment(analyze_upload(given, words, max_upload * MEGABYTE))

    _on(gr, None, button.click, run, [files, text], found)


def _layer(gr: Any, shelf: Shelf, model: Any, first: str, words: str | None = None) -> Any:
    """A slider from 1 to the layers of the chosen model, at the last."""
    count = num_layers(shelf[first])
    layer = gr.Slider(1, count, value=count, step=1, label="Layer", info=words)

    def layers_of(name: str) -> Any:
        count = num_layers(shelf[name])
        return gr.Slider(maximum=count, value=count)

    _on(gr, shelf, model.change, layers_of, [model], layer)
    return layer


def _picture(gr: Any) -> Any:
    """A place for a picture, of which the function gets the file: it is decoded by our own reader."""

    def file_of(payload: Any) -> str | None:
        return None if payload is None else payload.path

    names = ", ".join(FORMATS[:4])
    options = {"sources": ["upload", "clipboard"], "type": "filepath", "image_mode": None, "format": "png"}
    picture = gr.Image(**options, height=260, label=f"Picture ({names}, ...)", buttons=[])
    # Of this one component: a class of our own would make gradio write a stub beside this file. gradio makes the
    # component anew, without this, where a function updates it; so none may give more than a new picture.
    picture.preprocess = file_of
    return picture


def _examples(gr: Any, picture: Any) -> None:
    """Photographs that fill the place for a picture when they are clicked."""
    examples = example_pictures()
    if not examples:
        return
    samples = [[str(one)] for one in examples]
    shown = gr.Dataset(components=[picture], samples=samples, type="index", label="Examples", show_label=True)

    def chosen(index: int) -> Any:
        with Image.open(examples[index]) as image:
            return image.copy()

    _on(gr, None, shown.click, chosen, [shown], picture)


def _on(
    gr: Any, shelf: Shelf | None, event: Callable[..., Any], run: Callable[..., Any], given: list[Any], out: Any
) -> None:
    """Run a function at an event, one at a time on the whole page, its errors in one line."""
    safe = in_one_line(run, shelf.paths if shelf else None)

    def shown(*arguments: Any) -> Any:
        try:
            return safe(*arguments)
        except PageError as error:
            raise gr.Error(str(error), print_exception=False, duration=None) from None

    limits = {"concurrency_id": "model", "concurrency_limit": 1}
    event(shown, given, out, **limits, api_visibility="private", show_progress="full")


def example_pictures() -> list[Path]:
    """The photographs that scikit-learn brings."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return sorted(folder.glob("*.jpg"))


def style() -> str:
    """The CSS of the page and of what it shows."""
    own = Path(__file__).with_name("page.css").read_text("utf-8")
    return f"{fragment_style()}\n{own}"
