"""`opencrate convert` for language models: a training dictionary in, a folder that generates, and back."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from opencrate import to_official

from ..contract.test_text_heads import WORDS, tokenizer  # noqa: F401 (a fixture)
from ..contract.text import text_model


@pytest.fixture
def checkpoint(tmp_path):
    """What the research fork's training loop writes, and its model."""
    model = text_model("overcomplete", is_causal=True, vocab_size=16)
    path = tmp_path / "ckpt.pt"
    official = {f"_orig_mod.{name}": value for name, value in to_official(model).items()}
    torch.save({"model": official, "model_args": {"n_head": 2}, "iter_num": 7}, path)
    return model, path


def test_there_and_back(opencrate, checkpoint, tokenizer, tmp_path):  # noqa: F811
    model, path = checkpoint
    tokenizer.save_pretrained(tmp_path / "words")
    words = ["--family", "crate_lm_overcomplete", "--tokenizer", tmp_path / "words"]
    result = opencrate("convert", path, tmp_path / "folder", *words, "context_overflow=crop")
    assert result.code == 0 and result.out.strip() == f"wrote {tmp_path / 'folder'}"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert (loaded.config.context_overflow, loaded.config.eos_token_id) == ("crop", 2)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "folder"), PreTrainedTokenizerFast)
    ids = torch.arange(4, 12)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert opencrate("convert", tmp_path / "folder", tmp_path / "back.safetensors", "--to-official").code == 0
    back, expected = load_file(tmp_path / "back.safetensors"), to_official(model)
    assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in back)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--family", "crate_lm"], "crate_lm"),
        (["--family", "crate_lm_overcomplete", "--image-size", "32"], "for images"),
        (["--family", "crate_lm_overcomplete", "--tokenizer", "nowhere"], "nowhere: cannot be loaded as a tokenizer"),
        (["--family", "crate_lm_overcomplete", "vocab_sise=3"], "did you mean 'vocab_size'"),
        ([], "crate_lm or crate_lm_overcomplete"),
    ],
)
def test_bad_input_is_one_line(opencrate, checkpoint, tmp_path, words, message):
    result = opencrate("convert", checkpoint[1], tmp_path / "folder", *words)
    assert result.code == 2 and message in result.err and len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "folder").exists()


def test_a_tokenizer_of_another_vocabulary(opencrate, checkpoint, tokenizer, tmp_path):  # noqa: F811
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.add_tokens([f"word{index}" for index in range(40)])
    tokenizer.save_pretrained(tmp_path / "words")
    words = ["--family", "crate_lm_overcomplete", "--tokenizer", tmp_path / "words"]
    result = opencrate("convert", checkpoint[1], tmp_path / "folder", *words)
    assert result.code == 2 and f"{len(WORDS) + 40} tokens and the model 16" in result.err
