"""A patch embedding that starts by whitening."""

import pytest
import torch
from torch.nn.functional import conv2d

from opencrate import CrateConfig, CrateForImageClassification
from opencrate.training.whitening import FLOOR, whiten_patches


def correlated(seed):
    """Images `(40, 3, 16, 16)` whose neighbouring pixels are alike, as in photographs."""
    noise = torch.randn(40, 3, 18, 18, generator=torch.Generator().manual_seed(seed))
    return conv2d(noise, torch.ones(3, 1, 3, 3) / 9, groups=3)


def model_of(width, **options):
    options = {"patch_embedding": "conv", "num_attention_heads": 1, "num_hidden_layers": 1, **options}
    torch.manual_seed(0)
    return CrateForImageClassification(CrateConfig(hidden_size=width, image_size=16, patch_size=4, **options))


@pytest.mark.parametrize("width", [60, 48, 20])
def test_tokens_of_the_patches_become_white(width):
    """Their second moment has the eigenvalues s / (s + FLOOR), the largest `width` of them, and zeros."""
    model, images = model_of(width), correlated(0)
    embed = model.crate.embeddings.patch_embeddings
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
    variances = torch.linalg.eigvalsh(patches.mT @ patches / len(patches)).flip(0)[:width]
    whiten_patches(model, images, seed=1)
    tokens = embed(images).flatten(0, 1).double()
    found = torch.linalg.eigvalsh(tokens.mT @ tokens / len(tokens)).flip(0)
    expected = torch.zeros(width).double()
    expected[: len(variances)] = (variances / (variances + FLOOR)).sort(descending=True).values
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not embed.projection.bias.any()


def test_the_seed_alone_turns_it():
    first, again, other = model_of(30), model_of(30), model_of(30)
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        whiten_patches(model, correlated(0), seed)
    weights = [model.crate.embeddings.patch_embeddings.projection.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2])


def test_other_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"model\.config\.patch_embedding=conv"):
        whiten_patches(model_of(30, patch_embedding="norm_linear"), correlated(0), 0)
