"""The training loss: one cross-entropy, CRATE's penalties, and the same mean however a batch is cut."""

import pytest
import torch
from torch.nn import functional as F

from opencrate.blocks import orthogonality_loss
from opencrate.store.build import build_config, initialise
from opencrate.training.losses import cross_entropy_sum, penalty
from opencrate.training.processes import SharedBatches, batches_of_share, share_of
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer


def by_hand(logits, labels, smoothing):
    classes = logits.shape[1]
    wanted = F.one_hot(labels, classes).double() if labels.ndim == 1 else labels.double()
    wanted = (1 - smoothing) * wanted + smoothing / classes
    return -(wanted * (logits.double() - logits.double().logsumexp(1, keepdim=True))).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_and_soft_labels_are_one_loss(smoothing):
    torch.manual_seed(0)
    logits, hard = torch.randn(6, 4) * 3, torch.randint(4, (6,))
    soft = torch.rand(6, 4).softmax(1)
    for labels in (hard, soft):
        expected = by_hand(logits, labels, smoothing).float()
        torch.testing.assert_close(cross_entropy_sum(logits, labels, smoothing), expected, rtol=1e-6, atol=1e-6)
    one_hot = F.one_hot(hard, 4).float()
    torch.testing.assert_close(
        cross_entropy_sum(logits, one_hot, smoothing), cross_entropy_sum(logits, hard, smoothing)
    )
    assert cross_entropy_sum(logits.bfloat16(), hard).dtype == torch.float32


def test_penalties_of_the_configuration_are_kept(small):
    recipe = small("model.config.subspace_penalty=0.3", "model.config.dictionary_penalty=0.2")
    model = initialise(build_config(recipe, ["a", "b"]), 0)
    assert penalty(model) == orthogonality_loss(model, 0.3, 0.2) > 0
    assert penalty(initialise(build_config(small(), ["a", "b"]), 0)) == 0.0


@pytest.mark.parametrize("penalties", [(), ("model.config.subspace_penalty=0.3",)], ids=["plain", "penalty"])
def test_accumulated_gradient_is_that_of_one_batch(small, penalties, monkeypatch, tmp_path):
    """Also for the epoch's last step, which has fewer images: 24 images in steps of 16 and 8."""
    norms = {}

    def recorded(size, accumulation):
        original = RecipeTrainer._get_grad_norm

        def norm(self, model, grad_norm=None):
            value = original(self, model, grad_norm=grad_norm)
            norms.setdefault((size, accumulation), []).append((value.item(), self._tr_loss.item()))
            return value

        with monkeypatch.context() as patched:
            patched.setattr(RecipeTrainer, "_get_grad_norm", norm)
            train(
                small(
                    f"training.per_device_train_batch_size={size}",
                    f"training.gradient_accumulation_steps={accumulation}",
                    "augmentation.mixup=0.5",
                    "training.label_smoothing_factor=0.1",
                    *penalties,
                ),
                tmp_path / f"{size}-{accumulation}",
            )
        return norms[size, accumulation]

    whole = recorded(16, 1)
    assert len(whole) == 2
    for cut in ((8, 2), (4, 4), (2, 8)):
        torch.testing.assert_close(recorded(*cut), whole, rtol=1e-5, atol=1e-6)


def test_processes_share_a_batch_without_loss():
    for length in range(0, 9):
        for count in (1, 2, 3):
            shares = [share_of(range(length), rank, count) for rank in range(count)]
            if 0 < length < count:
                assert all(share == list(range(length)) for share in shares)
            else:
                assert [item for share in shares for item in share] == list(range(length))
                assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shared_batches_are_the_global_ones(count):
    order = list(range(29))
    processes = [list(SharedBatches(order, 4, rank, count)) for rank in range(count)]
    assert {len(batches) for batches in processes} == {len(SharedBatches(order, 4, 0, count))}
    for number, shares in enumerate(zip(*processes)):
        part = order[number * 4 * count : (number + 1) * 4 * count]
        assert sorted({item for share in shares for item in share}) == part


def test_processes_evaluate_equally_many_batches():
    for length in (1, 2, 7, 100, 513):
        for size in (2, 5, 256):
            for count in (1, 2, 3, 8):
                batches = [batches_of_share(length, size, rank, count) for rank in range(count)]
                assert len({len(own) for own in batches}) == 1
                assert all(0 < len(batch) <= size for own in batches for batch in own)
                items = [item for own in batches for batch in own for item in batch]
                whole = list(range(length))
                assert items == (whole if length >= count else whole * count)
    assert batches_of_share(7, 3, 0, 1) == [[0, 1, 2], [3, 4, 5], [6]]
