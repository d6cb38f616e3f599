"""Every head with a loss, examples for it, and the step that transformers' own Trainer makes of them."""

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler, default_collate
from transformers import PreTrainedModel, Trainer, TrainingArguments

import opencrate as oc

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer": "normal"}
PENALTIES = {"subspace_penalty": 0.1, "dictionary_penalty": 0.2}
COUNT = 16
UNCOUNTED = ("autoencoder", "question answering")
"""Heads whose batches have nothing that a Trainer counts: it takes the mean over its batches, which are to be equal."""


def image(**more) -> Callable[[], PreTrainedModel]:
    return lambda **penalties: oc.CrateForImageClassification(
        oc.CrateConfig(image_size=8, patch_size=4, **SHAPE, **more, **penalties)
    )


def text(cls, **more) -> Callable[[], PreTrainedModel]:
    return lambda **penalties: cls(
        oc.CrateTextConfig(vocab_size=50, max_position_embeddings=16, **SHAPE, **more, **penalties)
    )


def autoencoder(**penalties) -> PreTrainedModel:
    return oc.CrateMAEForPreTraining(oc.CrateMAEConfig(image_size=8, patch_size=4, **SHAPE, **penalties))


def ignoring(rows: Tensor) -> Tensor:
    """Labels ``(16, N)`` of which example i keeps the last i mod 8: none in the first, and never as many as next."""
    kept = torch.arange(len(rows))[:, None] % 8 > torch.arange(rows.shape[1]).flip(0)
    return torch.where(kept, rows, -100)


def heads() -> dict[str, tuple[Callable[..., PreTrainedModel], dict[str, Tensor]]]:
    """Name -> (a model with given penalties, a batch of 16 examples)."""
    numbers = torch.Generator().manual_seed(1)
    pixels, ids = (torch.randn(COUNT, 3, 8, 8, generator=numbers), torch.randint(50, (COUNT, 8), generator=numbers))
    noise = torch.rand(COUNT, 4, generator=numbers)
    scores, places = torch.randn(COUNT, 3, generator=numbers), torch.randint(8, (2, COUNT), generator=numbers)
    classes, words = torch.arange(COUNT) % 3, ignoring(ids)
    sequence = oc.CrateForSequenceClassification
    return {
        "image classes": (image(num_labels=3), {"pixel_values": pixels, "labels": classes}),
        "image, several labels": (image(num_labels=3), {"pixel_values": pixels, "labels": (scores > 0).float()}),
        "image regression": (image(num_labels=1), {"pixel_values": pixels, "labels": scores[:, 0]}),
        "sequence classes": (text(sequence, num_labels=3), {"input_ids": ids, "labels": classes}),
        "sequence classes, some ignored": (
            text(sequence, num_labels=3),
            {"input_ids": ids, "labels": torch.where(torch.arange(COUNT) < 5, -100, classes)},
        ),
        "sequence, several labels": (text(sequence, num_labels=3), {"input_ids": ids, "labels": (scores > 0).float()}),
        "sequence regression": (text(sequence, num_labels=1), {"input_ids": ids, "labels": classes}),
        "sequence regression, three numbers": (
            text(sequence, num_labels=3, problem_type="regression"),
            {"input_ids": ids, "labels": scores},
        ),
        "token classes": (
            text(oc.CrateForTokenClassification, num_labels=3),
            {"input_ids": ids, "labels": torch.where(words < 0, words, words % 3)},
        ),
        "choices": (
            text(oc.CrateForMultipleChoice),
            {"input_ids": torch.stack((ids, ids.flip(1)), 1), "labels": classes % 2},
        ),
        "question answering": (
            text(oc.CrateForQuestionAnswering),
            {"input_ids": ids, "start_positions": places[0], "end_positions": places[1], "labels": classes},
        ),
        "causal": (text(oc.CrateForCausalLM), {"input_ids": ids, "labels": words}),
        "masked": (text(oc.CrateForMaskedLM), {"input_ids": ids, "labels": words}),
        "autoencoder": (autoencoder, {"pixel_values": pixels, "noise": noise, "labels": classes}),
    }


class OrderedTrainer(Trainer):
    """transformers' Trainer, in the order of the examples."""

    def _get_train_sampler(self, *arguments, **options):
        return SequentialSampler(self.train_dataset)

    def log(self, *arguments, **options):
        pass


def weights_of(model: PreTrainedModel) -> Tensor:
    """All parameters, ``(n)``."""
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def moved(name: str, size: int, accumulation: int, count: int = COUNT, penalties: dict | None = None, **settings):
    """How far one step of SGD at rate 1 moves the weights of a head on its first ``count`` examples, ``(n)``."""
    make, batch = heads()[name]
    torch.manual_seed(0)
    model = make(**(penalties or {}))
    before = weights_of(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=1.0,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
            **settings,
        )
        examples = [{key: value[i] for key, value in batch.items()} for i in range(count)]
        OrderedTrainer(model=model, args=arguments, train_dataset=examples, data_collator=default_collate).train()
    return weights_of(model) - before


def gradient(name: str, count: int = COUNT, penalties: dict | None = None) -> Tensor:
    """The gradient of the mean loss of the same examples as one batch, ``(n)``."""
    make, batch = heads()[name]
    torch.manual_seed(0)
    model = make(**(penalties or {})).train()
    model(**{key: value[:count] for key, value in batch.items()}).loss.backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()])
