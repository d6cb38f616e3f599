"""One layer's features and attention of every kind of vision model, against what the model itself gives."""

import pytest
import torch
from torch.testing import assert_close

from opencrate.analysis.masks.overlap import overlapping
from opencrate.analysis.masks.views import MAX_TOKENS, layer_number, token_views
from opencrate.analysis.record.hooks import KNOWN_MODELS, blocks_of, hooks_of

from ..foreign_models import IMAGE_TYPES, inputs_for, tiny
from ..models import tiny_autoencoder, tiny_crate, tiny_images
from .models import colour_crate

PREFIX = {"deit": 2, "dinov2_with_registers": 3, "dinov3_vit": 3, "ijepa": 0, "siglip_vision_model": 0}


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("model_type", IMAGE_TYPES)
def test_attention_and_keys_are_the_models_own(model_type):
    model, inputs = tiny(model_type), inputs_for(model_type)
    view = token_views(model, inputs["pixel_values"], layer=2)
    prefix = PREFIX.get(model_type, 1)
    read = []
    block, names = blocks_of(model, hooks_of(model))[1], KNOWN_MODELS[model_type]
    block.get_submodule(names.key).register_forward_hook(lambda module, arguments, output: read.append(output))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions[1]
    expected = maps[:, :, 0, prefix:] if prefix else maps.mean(2)
    assert view.looked_at_by == ("class token" if prefix else "mean over patches")
    assert_close(view.attention, expected)
    assert_close(view.features, read[0][:, prefix:])
    assert view.grid == (2, 2) and view.layer == 2


@pytest.mark.parametrize("position", ["absolute", "absolute+both"])
@pytest.mark.parametrize("compression", ["mssa", "attention"])
def test_class_row_of_a_crate_is_the_row_of_its_maps(compression, position):
    model, images = colour_crate(compression=compression, position=position), pixels(2, 3, 12, 8)
    with torch.no_grad():
        outputs = model(images, output_attentions=True, output_projected_states=True, output_sparse_codes=True)
    view = token_views(model, images, layer=1)
    assert_close(view.attention, outputs.attentions[0][:, :, 0, 1:])
    assert torch.equal(view.features, outputs.projected_states[0].transpose(1, 2).flatten(2)[:, 1:])
    assert torch.equal(token_views(model, images, features="codes").features, outputs.sparse_codes[1][:, 1:])
    assert view.grid == (3, 2)


@pytest.mark.parametrize("model_type", ["vit", "dinov2", "vit_mae", "siglip_vision_model", "dinov3_vit"])
def test_any_size_and_aspect(model_type):
    model = tiny(model_type)
    whole = token_views(model, pixels(1, 1, 12, 20), features="tokens")
    assert whole.grid == (3, 5) and whole.features.shape == (1, 15, 16)
    together = token_views(model, torch.cat([pixels(1, 1, 12, 20)] * 2), features="tokens")
    assert_close(together.features[1:], whole.features)


def test_an_autoencoder_is_read_whole():
    model, images = tiny_autoencoder(), tiny_images(2)["pixel_values"]
    view = token_views(model, images)
    assert view.grid == (2, 3) and view.attention.shape == (2, 2, 6)
    assert model.config.mask_ratio == 0.5


def test_head_and_training_mode_change_nothing():
    classifier, images = tiny_crate(dropout=0.5), tiny_images(2)["pixel_values"]
    classifier.train()
    with_head = token_views(classifier, images)
    assert torch.equal(with_head.features, token_views(classifier.crate.eval(), images).features)
    assert classifier.norm.training


@pytest.mark.parametrize("embedding", ["norm_linear", "conv"])
def test_overlapping_patches_are_the_patches_of_shifted_images(embedding):
    model, images = colour_crate(patch_embedding=embedding), pixels(1, 3, 8, 12)
    patches = model.embeddings.patch_embeddings
    with torch.no_grad(), overlapping(model, (2, 2)):
        fine = patches(images).unflatten(1, patches.grid(images))
    with torch.no_grad():
        coarse = patches(images).unflatten(1, (2, 3))
        shifted = patches(images[:, :, 2:6, 2:10]).unflatten(1, (1, 2))
    assert fine.shape[1:3] == (3, 5)
    assert_close(fine[:, ::2, ::2], coarse)
    assert_close(fine[:, 1:2, 1::2], shifted)


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "vit_mae", "clip_vision_model", "siglip_vision_model"])
def test_positions_follow_overlapping_patches(model_type):
    """Every patch of a constant image is the same: what differs are positions, those of an image with as many."""
    model = tiny(model_type)
    fine = token_views(model, torch.ones(1, 1, 8, 12), features="tokens", stride=2)
    large = token_views(model, torch.ones(1, 1, 12, 20), features="tokens")
    assert fine.grid == large.grid == (3, 5) and fine.overlap == (2, 2)
    assert_close(fine.features, large.features)
    again = token_views(model, torch.ones(1, 1, 8, 12), features="tokens")
    assert again.grid == (2, 3)


def test_a_failed_pass_leaves_the_model_as_it_was():
    model, crate = tiny("vit"), colour_crate()
    before = model.config._attn_implementation
    broken = [model.layers[2].mlp, crate.layers[1].sparsify]
    for module in broken:
        module.register_forward_pre_hook(lambda *_: 1 / 0)
    for one, images in ((model, pixels(1, 1, 8, 8)), (crate, pixels(1, 3, 8, 8))):
        with pytest.raises(ZeroDivisionError):
            token_views(one, images, stride=2)
    assert model.config._attn_implementation == before
    assert model.embeddings.patch_embeddings.projection.stride == (4, 4)
    assert "interpolate_pos_encoding" not in vars(model.embeddings)
    assert crate.embeddings.patch_embeddings.stride == (4, 4)
    assert not crate.layers[1].compress.operator._forward_pre_hooks


@pytest.mark.parametrize("overlap", [1, 2, 3, 4])
def test_covering_puts_every_patch_around_its_centre(overlap):
    patch = 12
    stride = patch // overlap
    view = token_views(colour_crate(patch_size=patch, image_size=24), pixels(1, 3, 24, 36), stride=stride)
    places = view.grid[0] * view.grid[1]
    cells = view.covering(torch.eye(places).numpy())
    height, width = 24 / cells.shape[1], 36 / cells.shape[2]
    assert height == width == (stride if overlap % 2 else stride / 2)
    inner = (view.grid[0] // 2) * view.grid[1] + view.grid[1] // 2
    if 0 < inner // view.grid[1] < view.grid[0] - 1:
        rows, columns = cells[inner].nonzero()
        centre = (inner // view.grid[1] * stride + patch / 2, inner % view.grid[1] * stride + patch / 2)
        assert ((rows.mean() + 0.5) * height, (columns.mean() + 0.5) * width) == centre
    assert cells.any(0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer=3: the model has layers 1 to 2, or -1"),
        ({"layer": 0}, "layer=0"),
        ({"layer": -3}, "layer=-3"),
        ({"features": "values"}, "must be one of keys, tokens, codes"),
        ({"stride": 3}, "stride=3: must divide the patch of 4x4 pixels: 1, 2, 4"),
        ({"stride": 8}, "stride=8"),
    ],
)
def test_arguments_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        token_views(colour_crate(), pixels(1, 3, 8, 8), **options)


@pytest.mark.parametrize("shape", [(1, 3, 2, 8), (1, 3, 8, 10), (0, 3, 8, 8), (3, 8, 8)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="pixel_values"):
        token_views(colour_crate(), torch.zeros(shape))


def test_too_many_patches_are_refused_with_the_memory_they_need():
    side = 4 * int(MAX_TOKENS**0.5 + 1)
    with pytest.raises(ValueError, match=r"142 x 142 = 20,164 patches.*1\.2 GB"):
        token_views(colour_crate(), torch.zeros(1, 3, side, side))


@pytest.mark.parametrize("compression", ["tssa", "cbsa", "gradient"])
def test_operators_without_maps(compression):
    model, images = colour_crate(compression=compression), pixels(1, 3, 8, 8)
    with pytest.raises(ValueError, match=f"compression='{compression}': this operator has no attention maps"):
        token_views(model, images)
    view = token_views(model, images, attention=False)
    assert view.attention is None and view.features.shape == (1, 4, 16)


def test_models_whose_patches_cannot_overlap():
    with pytest.raises(ValueError, match="conv_stem"):
        token_views(colour_crate(patch_embedding="conv_stem"), pixels(1, 3, 8, 8), stride=2)
    with pytest.raises(ValueError, match="positions of a DINOv3ViTModel cannot follow"):
        token_views(tiny("dinov3_vit"), pixels(1, 1, 8, 8), stride=2)


def test_damaged_weights_are_named():
    model = tiny_crate()
    with torch.no_grad():
        model.crate.layers[0].compress.mssa.subspaces.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 3: the keys hold NaN"):
        token_views(model, tiny_images(1)["pixel_values"], attention=False)


def test_layer_numbers():
    assert [layer_number(layer, 3) for layer in (1, 3, -1, -3)] == [1, 3, 3, 1]
