"""The autoencoder's contract: ViTMAE's interface, its options, its states, saving, and bad input."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from opencrate import CrateMAEConfig, CrateMAEForPreTraining, CrateMAEModel
from opencrate.modeling_crate_mae import random_mask

from .common import checkpoint_activations, images_of, model_of as classifier_of

BASE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
VARIANTS = {
    "published": {},
    "visible only": {"mask_tokens_in_encoder": False},
    "all pixels": {"loss_on": "all", "norm_pix_loss": True},
    "tied": {"tie_decoder": True},
    "other decoder": {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4},
    "rectangular": {"image_size": [8, 12], "patch_size": (2, 4), "num_channels": 1, "patch_embedding": "norm_linear"},
    "kappa": {"compression_kappa": 0.5},
    "orthonormal": {"subspace_constraint": "joint", "dictionary_constraint": "orthonormal", "subspace_penalty": 0.1},
    "whole images": {"mask_ratio": 0, "loss_on": "all"},
    "bias and rope": {"position": "both"},
    "bias, visible only": {"position": "absolute+both", "mask_tokens_in_encoder": False},
    "cbsa": {"compression": "cbsa", "mask_tokens_in_encoder": False, "position": "none"},
}
FLAGS = ("hidden_states", "compressed_states", "projected_states", "sparse_codes", "attentions")
ALL_STATES = {f"output_{name}": True for name in FLAGS}


def model_of(variant: str = "published", **changes) -> CrateMAEForPreTraining:
    """A model in evaluation mode, moved off its initial norms and biases."""
    torch.manual_seed(0)
    model = CrateMAEForPreTraining(CrateMAEConfig(**{**BASE, **VARIANTS[variant], **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def noise_of(model, images, seed: int = 3):
    n = model.crate.embeddings.patch_embeddings(images).shape[1]
    return torch.rand(len(images), n, generator=torch.Generator().manual_seed(seed))


def run(model, images, **kwargs):
    return model(images, noise=noise_of(model, images), **kwargs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_shapes_and_every_parameter_gets_a_gradient(variant):
    model = model_of(variant)
    config, images = model.config, images_of(model)
    outputs = run(model, images)
    n = config.grid_size[0] * config.grid_size[1]
    num_masked = n - int(n * (1 - config.mask_ratio))
    assert outputs.logits.shape == model.patchify(images).shape == (2, n, outputs.logits.shape[-1])
    assert outputs.mask.shape == outputs.ids_restore.shape == (2, n)
    assert (outputs.mask.sum(dim=1) == num_masked).all() and outputs.hidden_states is None
    visible = n if config.mask_tokens_in_encoder else n - num_masked
    assert outputs.latent.shape == (2, 1 + visible, config.hidden_size)
    outputs.loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert torch.equal(model.unpatchify(model.patchify(images)), images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_and_loading_through_the_auto_classes(variant, tmp_path):
    model = model_of(variant)
    images = images_of(model)
    expected = run(model, images)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CrateMAEConfig)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, CrateMAEForPreTraining)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    outputs = run(loaded.eval(), images)
    assert torch.equal(outputs.loss, expected.loss) and torch.equal(outputs.logits, expected.logits)
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(encoder, CrateMAEModel)
    assert torch.equal(encoder(images, noise=noise_of(model, images)).last_hidden_state, expected.latent)


REMOTE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opencrate":
            raise ModuleNotFoundError("No module named 'opencrate'", name=name)

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = torch.load(sys.argv[2])
found = model(inputs["images"], noise=inputs["noise"]).logits
torch.testing.assert_close(found, inputs["logits"], rtol=0, atol=1e-5)
"""


@pytest.mark.slow
def test_a_saved_folder_loads_where_the_package_is_not_installed(tmp_path):
    model = model_of()
    images = images_of(model)
    model.save_pretrained(tmp_path / "model")
    expected = {"images": images, "noise": noise_of(model, images), "logits": run(model, images).logits.detach()}
    torch.save(expected, tmp_path / "run.pt")
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REMOTE, str(tmp_path / "model"), str(tmp_path / "run.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_agree_in_values_states_and_gradients(variant):
    model = model_of(variant).double()
    images, results = images_of(model), []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert model.config._attn_implementation == model.decoder.config._attn_implementation == attention
        outputs = run(model, images, **ALL_STATES)
        model.zero_grad()
        outputs.loss.backward()
        results.append((outputs, [parameter.grad.clone() for parameter in model.parameters()]))
    (eager, gradients), (sdpa, others) = results
    torch.testing.assert_close(tuple(eager.to_tuple()), tuple(sdpa.to_tuple()))
    torch.testing.assert_close(gradients, others)


def test_states_follow_the_formulas():
    model = model_of()
    images = images_of(model)
    outputs = run(model, images, **ALL_STATES)
    for layer, block in enumerate(model.decoder.layers):
        before, half = outputs.decoder_hidden_states[layer], outputs.decoder_compressed_states[layer]
        synthesis = block.synthesize
        normed = F.layer_norm(before, (16,), synthesis.norm.weight, synthesis.norm.bias, 1e-5)
        torch.testing.assert_close(half, normed @ synthesis.dictionary.T)
        update, maps = block.expand.mssa(block.expand.norm(half), output_attentions=True)
        torch.testing.assert_close(outputs.decoder_hidden_states[layer + 1], half - update)
        torch.testing.assert_close(outputs.decoder_attentions[layer], maps)
        projected = block.expand.mssa.heads(block.expand.mssa.subspaces(block.expand.norm(half)))
        torch.testing.assert_close(outputs.decoder_projected_states[layer], projected)
    assert torch.equal(outputs.decoder_hidden_states[0], outputs.latent)
    assert len(outputs.hidden_states) == 3 and len(outputs.sparse_codes) == len(outputs.compressed_states) == 2


def test_the_papers_step_is_reversed_to_first_order():
    """(1 + kappa gamma) Z - kappa gamma MSSA in the decoder, where the encoder has (1 - ...) and +."""
    model = model_of("kappa", compression_eps=1.0)
    tokens = torch.randn(1, 5, 16)
    expand = model.decoder.layers[0].expand
    update, _ = expand.mssa(expand.norm(tokens))
    step = 0.5 * 8 / 5  # kappa p / (N eps^2)
    torch.testing.assert_close(expand(tokens), (1 + step) * tokens - step * update)


def test_the_loss_by_hand():
    model = model_of()
    images = images_of(model)
    patches = model.patchify(images)
    assert torch.equal(patches[1, 5], images[1, :, 2:4, 2:4].permute(1, 2, 0).flatten())
    normed = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    for norm_pix_loss, target in ((False, patches), (True, normed)):
        for loss_on in ("masked", "all"):
            model.config.norm_pix_loss, model.config.loss_on = norm_pix_loss, loss_on
            outputs = run(model, images)
            error = (outputs.logits - target).square()
            chosen = error[outputs.mask.bool()] if loss_on == "masked" else error
            torch.testing.assert_close(outputs.loss, chosen.mean())


def test_noise_decides_and_masked_pixels_are_not_seen():
    model = model_of()
    images = images_of(model)
    first, again = run(model, images), run(model, images)
    assert torch.equal(first.logits, again.logits) and torch.equal(first.mask, again.mask)
    hidden = model.unpatchify(first.mask[..., None].expand_as(model.patchify(images)))
    for variant in ("published", "visible only"):
        model = model_of(variant)
        changed = torch.where(hidden.bool(), images + 5, images)
        torch.testing.assert_close(run(model, changed).logits, run(model, images).logits)
    torch.manual_seed(5)
    drawn = model(images).mask
    assert not torch.equal(drawn, model(images).mask)
    torch.manual_seed(5)
    assert torch.equal(model(images).mask, drawn)


def test_random_mask_by_hand():
    mask, ids_keep, ids_restore = random_mask(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert mask.tolist() == [[1, 0, 1, 0]] and ids_keep.tolist() == [[1, 3]] and ids_restore.tolist() == [[3, 0, 2, 1]]


def test_visible_only_at_ratio_0_is_the_encoder_with_all_tokens():
    images = images_of(model_of())
    everything = model_of(mask_ratio=0, loss_on="all")
    visible = model_of("visible only", mask_ratio=0, loss_on="all")
    noise = noise_of(everything, images)
    place = noise.argsort(dim=1)
    one, two = everything.crate(images).last_hidden_state, visible.crate(images, noise=noise).last_hidden_state
    torch.testing.assert_close(one[:, 0], two[:, 0])
    torch.testing.assert_close(one[:, 1:].gather(1, place[..., None].expand(-1, -1, 16)), two[:, 1:])


def test_tied_layers_share_with_their_mirror_image():
    model = model_of("tied")
    for layer in range(2):
        own, other = model.decoder.layers[layer], model.crate.layers[1 - layer]
        assert own.synthesize.dictionary is other.sparsify.ista.dictionary
        assert own.expand.mssa.subspaces.weight is other.compress.mssa.subspaces.weight
        assert own.expand.mssa.output.bias is other.compress.mssa.output.bias
        assert own.expand.norm.weight is not other.compress.norm.weight
    free = sum(parameter.numel() for parameter in model_of().parameters())
    assert free - sum(parameter.numel() for parameter in model.parameters()) == 2 * (3 * 16 * 16 + 16)


@pytest.mark.parametrize("variant", ["published", "visible only"])
def test_other_image_sizes_are_served(variant):
    model = model_of(variant)
    images = images_of(model, size=(12, 4))
    outputs = run(model, images)
    assert outputs.logits.shape == (2, 12, 12) and outputs.loss.isfinite()
    assert torch.equal(model.unpatchify(model.patchify(images), (12, 4)), images)
    with pytest.raises(ValueError, match=r"12 patches are not those of an image of 8x8 \(4x4 patches\)"):
        model.unpatchify(outputs.logits)


@pytest.mark.parametrize("variant", ["published", "visible only", "kappa"])
def test_half_precision(variant):
    model = model_of(variant)
    images = images_of(model)
    expected = run(model, images).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(model, images).loss
    half = run(model.bfloat16(), images).loss
    assert mixed.dtype == half.dtype == torch.float32
    torch.testing.assert_close((mixed, half), (expected, expected), rtol=0.05, atol=0)
    half.backward()


def test_gradient_checkpointing_changes_nothing():
    model = model_of()
    images = images_of(model)
    run(model, images).loss.backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    checkpoint_activations(model)
    run(model.train(), images).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], plain)


@pytest.mark.parametrize("initializer", ["official", "normal"])
def test_initial_values(initializer):
    model = CrateMAEForPreTraining(CrateMAEConfig(**{**BASE, "hidden_size": 64, "initializer": initializer}))
    bound = (6 / 64) ** 0.5
    for dictionary in (model.crate.layers[0].sparsify.ista.dictionary, model.decoder.layers[0].synthesize.dictionary):
        expected = bound / 3**0.5 if initializer == "official" else 0.02
        assert dictionary.std().item() == pytest.approx(expected, rel=0.1)
    assert model.crate.embeddings.mask_token.std() < 0.04
    assert model.crate.embeddings.position_embeddings.abs().max() <= 1
    assert not any(name.startswith("unused") or "position" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, float("nan")])
def test_mask_ratios_outside_the_range(ratio):
    with pytest.raises(
        ValueError, match=r"mask_ratio=.* is not allowed; it must be a number of at least 0 and below 1"
    ):
        CrateMAEConfig(**BASE, mask_ratio=ratio)
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        random_mask(torch.rand(1, 4), ratio)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 18}, "hidden_size=18 is not allowed; it must be a multiple of 4"),
        ({"decoder_num_attention_heads": 3}, "decoder_num_attention_heads=3 is not allowed"),
        (
            {"decoder_num_hidden_layers": 0},
            "decoder_num_hidden_layers=0 is not allowed; it must be a whole number of at least 1",
        ),
        ({"tie_decoder": True, "decoder_num_hidden_layers": 1}, "tie_decoder=true is not allowed; it must be false"),
        ({"mask_ration": 0.5}, "unknown argument 'mask_ration'; did you mean 'mask_ratio'"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        CrateMAEConfig(**{**BASE, **changes})


def test_a_classifier_given_as_autoencoder(tmp_path):
    classifier_of().save_pretrained(tmp_path)
    for cls in (CrateMAEForPreTraining, CrateMAEModel, CrateMAEConfig):
        with pytest.raises(ValueError, match="model_type='crate' is not an autoencoder with a decoder"):
            cls.from_pretrained(tmp_path)


def test_bad_input():
    model = model_of()
    images = images_of(model)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 15\), but these images have \(2, 16\)"):
        model(images, noise=torch.rand(2, 15))
    with pytest.raises(ValueError, match=r"noise has shape \(1, 16\)"):
        model(images, noise=torch.rand(1, 16))
    with pytest.raises(ValueError, match="image size 9x8 does not fit patch_size 2x2"):
        model(torch.zeros(1, 3, 9, 8))
    with pytest.raises(ValueError, match="pixel_values have 1 channels"):
        model(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="unknown output flag 'output_codes'"):
        model(images, output_codes=True)
    model.config.mask_ratio = 0.0
    with pytest.raises(ValueError, match=r"mask_ratio=0\.0 masks none of 16 patches"):
        model(images)
    with pytest.raises(ValueError, match="unknown CrateMAEConfig size 'smal'; did you mean 'small'"):
        CrateMAEConfig.from_size("smal")
