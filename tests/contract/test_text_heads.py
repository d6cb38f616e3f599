"""Classification heads on the text models, and the models where users meet them: Auto classes, pipelines, Trainer."""

import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    modeling_outputs,
    pipeline,
)

from opencrate import (
    CrateForCausalLM,
    CrateForMaskedLM,
    CrateForMultipleChoice,
    CrateForQuestionAnswering,
    CrateForSequenceClassification,
    CrateForTokenClassification,
    CrateTextConfig,
    CrateTextModel,
)
from opencrate.modeling_crate_text_heads import pool

from .common import ALL_STATES
from .text import ids_of, text_model

HEADS = {
    AutoModelForSequenceClassification: (CrateForSequenceClassification, modeling_outputs.SequenceClassifierOutput),
    AutoModelForTokenClassification: (CrateForTokenClassification, modeling_outputs.TokenClassifierOutput),
    AutoModelForQuestionAnswering: (CrateForQuestionAnswering, modeling_outputs.QuestionAnsweringModelOutput),
    AutoModelForMultipleChoice: (CrateForMultipleChoice, modeling_outputs.MultipleChoiceModelOutput),
}
LABELS = {
    CrateForSequenceClassification: {"labels": torch.tensor([0, 2])},
    CrateForTokenClassification: {"labels": torch.tensor([[0, 1, 2, -100, 1], [2, 2, -100, 0, 0]])},
    CrateForQuestionAnswering: {"start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([3, 9])},
    CrateForMultipleChoice: {"labels": torch.tensor([2, 0])},
}


def inputs_for(cls) -> dict:
    shape = (2, 3, 5) if cls is CrateForMultipleChoice else (2, 5)
    mask = torch.ones(shape, dtype=torch.long)
    mask[..., 4] = 0
    return {"input_ids": ids_of(*shape), "attention_mask": mask, "token_type_ids": (ids_of(*shape) > 9).long()}


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_heads(auto, tmp_path):
    cls, output_class = HEADS[auto]
    model = text_model("overcomplete", cls, num_labels=3, type_vocab_size=2)
    inputs = inputs_for(cls)
    outputs = model(**inputs, **LABELS[cls], **ALL_STATES)
    assert isinstance(outputs, output_class) and outputs[0] is outputs.loss
    assert len(outputs.hidden_states) == 3 and len(outputs.compressed_states) == len(outputs.sparse_codes) == 2
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][..., 4] = 3  # padding
    score = "start_logits" if cls is CrateForQuestionAnswering else "logits"
    seen = slice(0, 4) if getattr(outputs, score).shape[1] == 5 else slice(None)
    assert_close(getattr(model(**changed), score)[:, seen], getattr(outputs, score)[:, seen])
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert isinstance(loaded, cls)
    assert_close(getattr(loaded(**inputs), score), getattr(outputs, score))


def test_losses_are_the_usual_ones():
    outputs = {}
    for cls in LABELS:
        model = text_model("alpha", cls, num_labels=3, type_vocab_size=2)
        outputs[cls] = model(**inputs_for(cls), **LABELS[cls])
    sequences, tokens = outputs[CrateForSequenceClassification], outputs[CrateForTokenClassification]
    assert_close(sequences.loss, F.cross_entropy(sequences.logits, torch.tensor([0, 2])))
    labels = LABELS[CrateForTokenClassification]["labels"]
    assert_close(tokens.loss, F.cross_entropy(tokens.logits.flatten(0, 1), labels.flatten()))
    answers = outputs[CrateForQuestionAnswering]
    start = F.cross_entropy(answers.start_logits, torch.tensor([1, 0]))
    end = F.cross_entropy(answers.end_logits[:1], torch.tensor([3]))  # the second lies beyond the text
    assert_close(answers.loss, (start + end) / 2)
    choices = outputs[CrateForMultipleChoice]
    assert choices.logits.shape == (2, 3)
    assert_close(choices.loss, F.cross_entropy(choices.logits, torch.tensor([2, 0])))


def test_choices_are_scored_one_by_one():
    model, inputs = text_model(cls=CrateForMultipleChoice, type_vocab_size=2), inputs_for(CrateForMultipleChoice)
    logits = model(**inputs).logits
    alone = model(**{name: value[1:, 2:] for name, value in inputs.items()}).logits
    assert_close(logits[1:, 2:], alone)


def test_regression_and_several_labels():
    inputs = inputs_for(CrateForSequenceClassification)
    one = text_model(cls=CrateForSequenceClassification, num_labels=1, type_vocab_size=2)
    outputs = one(**inputs, labels=torch.tensor([0.5, -1.0]))
    assert_close(outputs.loss, F.mse_loss(outputs.logits[:, 0], torch.tensor([0.5, -1.0])))
    several = text_model(
        cls=CrateForSequenceClassification, num_labels=3, type_vocab_size=2, problem_type="multi_label_classification"
    )
    outputs = several(**inputs, labels=torch.tensor([[1.0, 0, 1], [0, 0, 1]]))
    expected = F.binary_cross_entropy_with_logits(outputs.logits, torch.tensor([[1.0, 0, 1], [0, 0, 1]]))
    assert_close(outputs.loss, expected)


def test_pooling():
    tokens = torch.arange(24.0).view(2, 4, 3)
    left, right = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    for mask, first, last in ((left, 1, 3), (right, 0, 1)):
        assert torch.equal(pool(tokens, mask, "first")[0], tokens[0, first])
        assert torch.equal(pool(tokens, mask, "last")[0], tokens[0, last])
        assert torch.equal(pool(tokens, mask, "mean")[0], tokens[0, first : last + 1].mean(0))
        for kind, expected in (("first", tokens[1, 0]), ("last", tokens[1, 3]), ("mean", tokens[1].mean(0))):
            assert torch.equal(pool(tokens, mask, kind)[1], expected)
            assert torch.equal(pool(tokens, None, kind)[1], expected)


@pytest.mark.parametrize("causal, place", [(True, 3), (False, 0)])
def test_the_pooled_token_follows_the_direction(causal, place):
    model = text_model(cls=CrateForSequenceClassification, is_causal=causal, num_labels=3)
    ids = ids_of(2, 4)
    tokens = model.crate(ids).last_hidden_state
    assert_close(model(ids).logits, model.classifier(tokens[:, place]))


# --- Auto classes, pipelines, the Trainer ---------------------------------------------------------------------------

WORDS = ["[PAD]", "[MASK]", "[EOS]", "[UNK]", "the", "code", "is", "sparse", "and", "white", "box", "rate", "falls"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "mask_token": "[MASK]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SMALL = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 2}


def test_text_generation_pipeline(tokenizer, tmp_path):
    model = text_model("overcomplete", **SMALL)
    pipe = pipeline("text-generation", model=saved(model, tokenizer, tmp_path))
    assert isinstance(pipe.model, CrateForCausalLM)
    prompts = ["the code is", "white box"]
    for batch_size in (1, 2):
        answers = pipe(prompts, max_new_tokens=4, do_sample=False, batch_size=batch_size, return_full_text=False)
        for prompt, (answer,) in zip(prompts, answers):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            new = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
            assert answer["generated_text"].split() == tokenizer.decode(new, skip_special_tokens=True).split()
    assert pipe("the", max_new_tokens=40, do_sample=False, context_overflow="crop")
    with pytest.raises(ValueError, match="context_overflow='crop'"):
        pipe("the", max_new_tokens=40, do_sample=False)


def test_fill_mask_pipeline(tokenizer, tmp_path):
    model = text_model("complete", CrateForMaskedLM, **SMALL)
    pipe = pipeline("fill-mask", model=saved(model, tokenizer, tmp_path), top_k=3)
    assert isinstance(pipe.model, CrateForMaskedLM)
    found = pipe("the code is [MASK]")
    logits = model(**tokenizer("the code is [MASK]", return_tensors="pt")).logits[0, 3].softmax(-1)
    assert [each["token"] for each in found] == logits.topk(3).indices.tolist()
    assert found[0]["score"] == pytest.approx(logits.max().item(), rel=1e-4)


def test_classification_pipelines(tokenizer, tmp_path):
    names = {"id2label": {0: "dull", 1: "bright"}, "label2id": {"dull": 0, "bright": 1}}
    model = text_model("alpha", CrateForSequenceClassification, **SMALL, **names)
    pipe = pipeline("text-classification", model=saved(model, tokenizer, tmp_path / "a"))
    inputs = tokenizer(["the code is sparse", "rate"], return_tensors="pt", padding=True)
    best = model(**inputs).logits.softmax(-1).max(-1)
    for answer, score, index in zip(pipe(["the code is sparse", "rate"], batch_size=2), *best):
        assert answer["label"] == names["id2label"][index.item()]
        assert answer["score"] == pytest.approx(score.item(), rel=1e-4)
    tokens = text_model("complete", CrateForTokenClassification, **SMALL, **names)
    pipe = pipeline("token-classification", model=saved(tokens, tokenizer, tmp_path / "b"), ignore_labels=[])
    assert [each["word"] for each in pipe("the code")] == ["the", "code"]


def test_auto_classes(tmp_path):
    text_model().save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CrateTextConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), CrateTextModel)
    assert isinstance(AutoModelForCausalLM.from_config(CrateTextConfig.from_size("tiny")), CrateForCausalLM)
    assert isinstance(
        AutoModelForMaskedLM.from_config(CrateTextConfig.from_size("tiny", is_causal=False)), CrateForMaskedLM
    )


@pytest.mark.parametrize("cls", [CrateForCausalLM, CrateForMaskedLM])
def test_trainer(cls, tmp_path):
    model, ids = text_model("overcomplete", cls), ids_of(8, 12)
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones(12, dtype=torch.long)} for row in ids]
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(after, rel=1e-4)


REMOTE = """
import sys
sys.modules["opencrate"] = None  # the package is not there
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
print(model.generate(torch.arange(2, 8)[None], max_new_tokens=4, do_sample=False)[0].tolist())
"""


@pytest.mark.slow
def test_remote_code(tmp_path):
    model = text_model("overcomplete")
    model.save_pretrained(tmp_path / "model")
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "model")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = model.generate(torch.arange(2, 8)[None], max_new_tokens=4, do_sample=False)[0].tolist()
    assert done.stdout.strip().splitlines()[-1] == str(expected)
