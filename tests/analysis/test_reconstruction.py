"""Reconstructions and the baselines beside them: equal to the models' own losses, and by hand."""

import math

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from opencrate.evaluation.reconstruction import (
    masked_patch_errors,
    masking,
    mean_colour,
    nearest_visible,
    patch_noise,
    reconstruct,
)
from opencrate.store.saved import open_saved

from .models import tiny_autoencoder, tiny_crate

NOISE = patch_noise(3, 6, seed=0)


def pixels_of(count=3, seed=1):
    return torch.rand(count, 1, 4, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_vit_mae(**overrides) -> ViTMAEForPreTraining:
    """4x4 images in 2x2 patches, half of them masked."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    torch.manual_seed(0)
    config = ViTMAEConfig(**sizes, **decoder, image_size=4, patch_size=2, num_channels=1, mask_ratio=0.5, **overrides)
    return ViTMAEForPreTraining(config).eval()


@pytest.mark.parametrize("model", [tiny_autoencoder(), tiny_autoencoder(mask_tokens_in_encoder=False), tiny_vit_mae()])
def test_the_error_is_the_models_loss(model):
    pixels = pixels_of() if model.config.model_type == "crate_mae" else pixels_of()[..., :4]
    noise = patch_noise(3, (pixels.shape[-1] // 2) * 2, seed=4)
    errors = masked_patch_errors(model, pixels, noise)
    with torch.no_grad():
        expected = model(pixels, noise=noise)
    assert float(errors.model.mean()) == pytest.approx(float(expected.loss), rel=1e-6)
    assert torch.equal(errors.mask, expected.mask.bool())


def test_standardised_predictions_get_the_original_patchs_moments():
    model, pixels = tiny_autoencoder(norm_pix_loss=True), pixels_of()
    errors = masked_patch_errors(model, pixels, NOISE)
    with torch.no_grad():
        outputs = model(pixels, noise=NOISE)
    patches = model.patchify(pixels.double())
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    standard = ((patches - mean) / (variance + 1e-6).sqrt() - outputs.logits).square().mean(-1)
    mask = outputs.mask.bool()
    assert float(standard[mask].mean()) == pytest.approx(float(outputs.loss), rel=1e-5)
    by_hand = torch.stack([(standard * (variance[..., 0] + 1e-6))[i][mask[i]].mean() for i in range(3)])
    torch.testing.assert_close(errors.model, by_hand, rtol=1e-5, atol=1e-8)
    flat = (patches - mean).square().mean(-1)
    torch.testing.assert_close(errors.mean_colour, torch.stack([flat[i][mask[i]].mean() for i in range(3)]))
    assert reconstruct(model, pixels, NOISE, [0.5], [0.5]).mean_std_known


def test_baselines_by_hand():
    """A row of 2 x 3 patches with one number in each of two channels: 0 is masked, and 4."""
    patches = torch.tensor([[[9.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [9.0, 0.0], [5.0, 0.0]]])
    mask = torch.tensor([[True, False, False, False, True, False]])
    colour = mean_colour(patches, mask, num_channels=2)
    assert torch.equal(colour, torch.tensor([2.75, 1.5]).expand(1, 6, 2))
    nearest = nearest_visible(patches, mask, grid=(2, 3))
    assert nearest[0, 0].tolist() == [2, 2]  # 1 and 3 are equally near
    assert nearest[0, 4].tolist() == [3, pytest.approx(4 / 3)]  # 1, 3 and 5
    assert torch.equal(nearest[~mask], patches[~mask])


def test_mean_colour_is_per_channel_over_the_pixels_of_a_patch():
    patches = torch.tensor([[[0.0, 10.0, 2.0, 30.0], [7.0, 7.0, 7.0, 7.0]]])  # two pixels of two channels
    assert mean_colour(patches, torch.tensor([[False, True]]), 2)[0, 1].tolist() == [1, 20, 1, 20]


def test_pictures():
    model, pixels = tiny_autoencoder(), pixels_of()
    found = reconstruct(model, pixels, NOISE, [0.5], [0.5])
    torch.testing.assert_close(found.original, pixels.double() * 0.5 + 0.5)
    visible, hidden = ~found.where, found.where
    assert torch.equal(found.pasted[visible], found.original[visible])
    assert torch.equal(found.pasted[hidden], found.predicted[hidden]) and (found.masked[hidden] == 0.5).all()
    with torch.no_grad():
        logits = model(pixels, noise=NOISE).logits
    output = (model.unpatchify(logits, (4, 6)) * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found.predicted, output.double(), rtol=0, atol=1e-6)
    quality = found.quality()
    squared = (found.predicted - found.original).square()
    torch.testing.assert_close(quality["psnr"], -10 * squared.mean((1, 2, 3)).log10())
    by_hand = torch.stack([squared[i][hidden[i]].mean() for i in range(3)])
    torch.testing.assert_close(quality["psnr_masked"], -10 * by_hand.log10())
    assert (quality["psnr_pasted"] > quality["psnr_masked"]).all()


def test_another_ratio_and_none():
    model, pixels = tiny_autoencoder(), pixels_of()
    before = model.config.to_dict()
    found = reconstruct(model, pixels, NOISE, [0.5], [0.5], mask_ratio=0)
    assert not found.mask.any() and found.errors is None and found.quality()["psnr_masked"].isnan().all()
    assert reconstruct(model, pixels, NOISE, [0.5], [0.5], mask_ratio=0.9).errors is None  # nothing visible
    assert int(masked_patch_errors(model, pixels, NOISE, mask_ratio=0.34).mask[0].sum()) == 3
    with pytest.raises(ValueError), masking(model, 0.2):
        raise ValueError
    assert model.config.to_dict() == before and not model.training


def test_masks_do_not_depend_on_how_many_images_follow():
    assert torch.equal(patch_noise(2, 7, seed=3), patch_noise(5, 7, seed=3)[:2])
    assert not torch.equal(patch_noise(2, 7, seed=3), patch_noise(2, 7, seed=4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": torch.rand(3, 5)}, r"\(3, 5\); these images need \(3, 6\)"),
        ({"mask_ratio": 1.0}, "mask_ratio=1: must be at least 0 and less than 1"),
        ({"mask_ratio": math.nan}, "mask_ratio=nan"),
        ({"mask_ratio": 0.0}, "masks 0 of 6 patches"),
        ({"mask_ratio": 0.95}, "masks 6 of 6 patches"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises(ValueError, match=words):
        masked_patch_errors(tiny_autoencoder(), pixels_of(), **({"noise": NOISE} | options))


def test_only_autoencoders_are_loaded(tmp_path):
    model = tiny_autoencoder()
    model.save_pretrained(tmp_path / "whole")
    loaded = open_saved(tmp_path / "whole", ("autoencoder",)).model
    assert torch.equal(loaded.decoder.predict.weight, model.decoder.predict.weight)
    model.crate.save_pretrained(tmp_path / "encoder")
    tiny_crate().save_pretrained(tmp_path / "classifier")
    for name, kind in (("encoder", "CrateMAEModel"), ("classifier", "CrateForImageClassification")):
        with pytest.raises(ValueError, match=f"holds {kind}, .*not a masked autoencoder"):
            open_saved(tmp_path / name, ("autoencoder",))
    state = model.state_dict()
    model.save_pretrained(tmp_path / "more", state_dict={**state, "crate.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"weights that the model lacks: crate\.extra"):
        open_saved(tmp_path / "more", ("autoencoder",))
    state.pop("decoder.norm.weight")
    model.save_pretrained(tmp_path / "less", state_dict=state)
    with pytest.raises(ValueError, match=r"missing.*decoder\.norm\.weight"):
        open_saved(tmp_path / "less", ("autoencoder",))
    with pytest.raises(ValueError, match="no such folder"):
        open_saved(tmp_path / "nothing", ("autoencoder",))
