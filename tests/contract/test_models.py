"""What every CRATE model keeps, whatever its settings: states, gradients, precision, saving, compilation."""

import copy

import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import opencrate.attention
from opencrate import CrateForImageClassification, CrateModel
from opencrate.attention import attention_function, blocked_attention, dense_mask, matmul_attention
from opencrate.positions import grid_places

from .common import ALL_STATES, STATES, VARIANTS, checkpoint_activations, config_of, gradients_of, images_of, model_of

close = torch.testing.assert_close
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def assert_same_outputs(a, b, **tolerance) -> None:
    assert a.keys() == b.keys()
    for key in a:
        close(a[key], b[key], **tolerance)


# --- saving, backends, gradients -----------------------------------------------------------------------------


@every_variant
def test_save_and_load(variant, tmp_path):
    model = model_of(variant)
    images = images_of(model)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    for folder in ("one", "many"):
        loaded = CrateForImageClassification.from_pretrained(tmp_path / folder)
        moved = {"_name_or_path": str(tmp_path / folder)}
        assert loaded.config.to_dict() == {**model.config.to_dict(), **moved}
        assert_same_outputs(loaded(images, **ALL_STATES), model(images, **ALL_STATES), rtol=0, atol=0)


@every_variant
def test_sdpa_equals_eager(variant):
    model = model_of(variant).double()
    images = images_of(model)
    results = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        results.append((model(images, **ALL_STATES), gradients_of(model, images)))
    assert_same_outputs(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    assert_same_outputs(results[0][1], results[1][1], rtol=1e-8, atol=1e-12)


@every_variant
def test_every_parameter_gets_a_finite_gradient(variant):
    model = model_of(variant)
    for name, gradient in gradients_of(model, images_of(model, batch=4)).items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


@every_variant
def test_activation_checkpointing_changes_nothing(variant):
    model = model_of(variant).train()
    images = images_of(model)
    plain, states = gradients_of(model, images), model(images, **ALL_STATES)
    checkpoint_activations(model)
    assert_same_outputs(gradients_of(model, images), plain, rtol=1e-5, atol=1e-6)
    assert_same_outputs(model(images, **ALL_STATES), states, rtol=1e-5, atol=1e-6)


# --- recorded states -----------------------------------------------------------------------------------------


def assert_state_shapes(model, outputs, batch: int) -> None:
    c = model.config
    rows, columns = c.grid_size
    N, L = 1 + rows * columns, c.num_hidden_layers
    shapes = {
        "hidden_states": (L + 1, (batch, N, c.hidden_size)),
        "compressed_states": (L, (batch, N, c.hidden_size)),
        "projected_states": (L, (batch, c.num_attention_heads, N, c.head_dim)),
        "sparse_codes": (L, (batch, N, c.hidden_size * c.dictionary_expansion)),
        "attentions": (L, (batch, c.num_attention_heads, N, N)),
    }
    if "attentions" not in c.operator("compression").states:
        assert outputs.attentions == ()
        del shapes["attentions"]
    for name, (count, shape) in shapes.items():
        assert len(outputs[name]) == count and {tuple(t.shape) for t in outputs[name]} == {shape}, name
        assert all(t.isfinite().all() for t in outputs[name]), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_variant
def test_states_under_every_backend_without_gradients_and_under_autocast(variant, attention):
    model = model_of(variant, attn_implementation=attention)
    images = images_of(model)
    with torch.no_grad():
        assert_state_shapes(model, model(images, **ALL_STATES), batch=2)
        with torch.autocast("cpu", torch.bfloat16):
            assert_state_shapes(model, model(images, **ALL_STATES), batch=2)
    outputs = model(images, **ALL_STATES)
    assert_state_shapes(model, outputs, batch=2)
    assert all(state.requires_grad for name in STATES for state in outputs[name] or ())


@every_variant
def test_states_follow_the_formulas(variant):
    model = model_of(variant)
    images = images_of(model)
    encoder, c = model.crate, model.config
    outputs = encoder(images, **ALL_STATES)
    places = grid_places(c, c.grid_size, images.device)
    close(outputs.hidden_states[0], encoder.embeddings(images))
    close(outputs.hidden_states[-1], outputs.last_hidden_state, rtol=0, atol=0)
    for layer, block in enumerate(encoder.layers):
        before, half = outputs.hidden_states[layer], outputs.compressed_states[layer]
        normed, operator = block.compress.norm(before), block.compress.operator
        projected = normed.unsqueeze(1) @ operator.bases()
        if hasattr(operator, "projection_bias"):
            projected = projected + operator.projection_bias.unflatten(0, (2, 1, -1))
        close(outputs.projected_states[layer], projected)
        update, maps = operator(normed, output_attentions=True, places=places)
        if maps is not None:
            close(outputs.attentions[layer], maps)
        step = 1.0
        if c.compression_kappa is not None:
            kappa = block.compress.log_kappa.exp() if c.learned_steps != "none" else c.compression_kappa
            step = kappa * c.head_dim / (before.shape[1] * c.compression_eps**2)
            before = (1 - step) * before
        close(half, before + step * update)
        out, code = block.sparsify.ista(block.sparsify.norm(half))
        close(outputs.hidden_states[layer + 1], out + half if c.ista_residual else out)
        close(outputs.sparse_codes[layer], code)
    tokens = outputs.last_hidden_state
    pooled = tokens[:, 0] if c.pool == "cls" else tokens.mean(1)
    close(outputs.pooler_output, pooled)
    close(model(images).logits, model.classifier(model.norm(pooled)))


def test_only_what_was_asked_for_is_returned():
    model = model_of()
    images = images_of(model)
    assert set(model(images).keys()) == {"logits"}
    for name in STATES:
        assert set(model(images, **{f"output_{name}": True}).keys()) == {"logits", name}
        assert set(model(images, **{f"output_{name}": False}).keys()) == {"logits"}
    model.config.output_hidden_states = True
    assert len(model(images).hidden_states) == 3
    logits, hidden_states = model(images, return_dict=False)
    assert logits.shape == (2, 3) and len(hidden_states) == 3


def test_an_unknown_output_flag_is_an_error():
    model = model_of()
    with pytest.raises(ValueError, match=r"'output_compresed_states'; did you mean 'output_compressed_states'"):
        model(images_of(model), output_compresed_states=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_masked_tokens_are_neither_attended_to_nor_seen(attention):
    model = model_of(num_hidden_layers=1, attn_implementation=attention)
    images = images_of(model)
    mask = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        outputs = model(images, attention_mask=mask, **ALL_STATES)
        assert (outputs.attentions[0][0, :, :, 3] == 0).all() and (outputs.attentions[0][1] > 0).all()
        close(outputs.attentions[0].sum(-1), torch.ones(2, 2, 5))
        other = images.clone()
        other[0, :, 4:, :4] *= -1  # the third patch, token 3
        close(model(other, attention_mask=mask).logits, outputs.logits)
        assert not torch.allclose(model(other).logits, model(images).logits)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["relative bias", "absolute, bias and rope"])
def test_flex_attention_has_the_bias(variant):
    model = model_of(variant)
    images = images_of(model)
    with torch.no_grad():
        expected = model(images).logits
        model.set_attn_implementation("flex_attention")
        close(model(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_masks_of_every_backend_become_dense():
    states, padding = torch.zeros(2, 2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = padding.bool()[:, None, None].expand(2, 2, 3, 3)
    module = model_of().crate.layers[0].compress.mssa
    flash = dense_mask(module, padding, states, states)
    flex = create_block_mask(lambda b, h, q, k: padding[b, k] > 0, 2, None, 3, 3, device="cpu")
    for mask in (flash, dense_mask(module, flex, states, states)):
        assert mask.dtype == torch.bool and torch.equal(mask.expand(2, 2, 3, 3), expected)
    assert dense_mask(module, None, states, states) is None
    assert dense_mask(module, expected, states, states) is expected
    module.is_causal, lower = True, torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(dense_mask(module, None, states, states), lower)
    assert torch.equal(dense_mask(module, padding, states, states).expand(2, 2, 3, 3), expected & lower)
    assert dense_mask(module, None, states[:, :, :1], states) is None  # one query sees all keys


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_attention_is_the_same_with_and_without_half_instructions(monkeypatch, masked):
    """Where a CPU has them, products replace ``sdpa``; the choice is a matter of speed only."""
    model = model_of("complete").to(torch.bfloat16)
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]) if masked else None
    logits = {}
    for supported in (False, True):
        monkeypatch.setattr(opencrate.attention, "HALF_INSTRUCTIONS", supported)
        values = torch.zeros(1, 2, 5, 4, dtype=torch.bfloat16)
        expected = (matmul_attention if masked else blocked_attention) if supported else None
        chosen = attention_function("sdpa", values, False, not masked)
        assert chosen is expected or (expected is None and chosen not in (matmul_attention, blocked_attention))
        with torch.no_grad():
            logits[supported] = model(images_of(model), attention_mask=mask).logits.float()
    close(logits[True], logits[False], rtol=0, atol=0.02 * logits[True].abs().max().item())
    full = attention_function("sdpa", values.float(), False, True)
    assert full not in (matmul_attention, blocked_attention)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_backends_that_lack_something_say_so(dropout):
    """Flash attention has no bias, flex attention no dropout."""
    values = torch.zeros(1, 2, 5, 8)
    bias, module = torch.zeros(2, 5, 5), model_of("relative bias").crate.layers[0].compress.mssa
    with pytest.raises(
        ValueError, match=r"'flash_attention_2' has no bias .*use 'sdpa' or 'flex_attention', or a model"
    ):
        attention_function("flash_attention_2", values, False, True, bias)
    flex = attention_function("flex_attention", values, False, True, bias)
    if dropout:
        with pytest.raises(ValueError, match="'flex_attention' has no dropout: use 'sdpa'"):
            flex(module, values, values, values, None, scaling=1.0, dropout=dropout)


def test_rotations_go_with_any_backend():
    """One that takes nothing but queries, keys and values, as flash attention does."""

    def flash(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        assert attention_mask is None and "bias" not in kwargs
        maps = (query @ key.mT * scaling).softmax(-1)
        return (maps @ value).transpose(1, 2), None

    model = model_of("rope")
    expected = model(images_of(model)).logits
    AttentionInterface.register("opencrate_test_flash", flash)
    try:
        model.config._attn_implementation = "opencrate_test_flash"
        close(model(images_of(model)).logits, expected)
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("opencrate_test_flash", None)


def test_places_go_with_the_tokens_to_another_device():
    """accelerate moves the arguments of layers that lie on several devices."""
    config = config_of("absolute, bias and rope")
    places = grid_places(config, config.grid_size, torch.device("cpu"))
    moved = send_to_device({"places": places}, "meta")["places"]
    assert {one.device.type for one in (moved.offsets, *moved.rotation)} == {"meta"}
    assert moved.grid == places.grid and places.offsets.device.type == "cpu"


# --- initialisation, names, precision, compilation --------------------------------------------------------------


@pytest.mark.parametrize("initializer", ["official", "normal"])
@every_variant
def test_same_seed_gives_equal_finite_parameters(variant, initializer):
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(CrateForImageClassification(config_of(variant, initializer=initializer)))
    for (name, a), (_, b) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert a.isfinite().all() and torch.equal(a, b), name
        trivial = name.endswith(("bias", "temperature", "_step", "step_size", "log_kappa", "log_lambda"))
        assert trivial or "norm" in name or a.std() > 0, name


def test_initial_values_are_the_documented_ones():
    torch.manual_seed(0)
    official = CrateModel(config_of(hidden_size=64, num_hidden_layers=1))
    block = official.layers[0]
    dictionary, weight = block.sparsify.ista.dictionary, block.compress.mssa.subspaces.weight
    assert 0.9 * (6 / 64) ** 0.5 < dictionary.abs().max() <= (6 / 64) ** 0.5
    assert 0.9 * 64**-0.5 < weight.abs().max() <= 64**-0.5
    assert official.embeddings.position_embeddings.std().item() == pytest.approx(1, abs=0.2)
    normal = CrateModel(config_of(hidden_size=64, num_hidden_layers=1, initializer="normal", initializer_range=0.01))
    block = normal.layers[0]
    for parameter in (block.sparsify.ista.dictionary, block.compress.mssa.subspaces.weight):
        assert parameter.std().item() == pytest.approx(0.01, rel=0.1)
    assert normal.embeddings.position_embeddings.std().item() == pytest.approx(0.01, rel=0.2)


LAYER_KEYS = [
    "compress.norm.weight",
    "compress.norm.bias",
    "compress.mssa.subspaces.weight",
    "compress.mssa.output.weight",
    "compress.mssa.output.bias",
    "sparsify.norm.weight",
    "sparsify.norm.bias",
    "sparsify.ista.dictionary",
]
OTHER_KEYS = [
    "crate.embeddings.cls_token",
    "crate.embeddings.position_embeddings",
    "norm.weight",
    "norm.bias",
    "classifier.weight",
    "classifier.bias",
    "crate.embeddings.patch_embeddings.projection.weight",
    "crate.embeddings.patch_embeddings.projection.bias",
]
PATCH_NORMS = [
    f"crate.embeddings.patch_embeddings.norm_{a}.{b}" for a in ("pixels", "tokens") for b in ("weight", "bias")
]


def test_state_dict_keys_are_frozen():
    """Renaming a key breaks every saved model."""
    layers = [f"crate.layers.{layer}.{key}" for layer in range(2) for key in LAYER_KEYS]
    assert sorted(model_of("complete").state_dict()) == sorted([*OTHER_KEYS, *PATCH_NORMS, *layers])
    alpha = {key for key in layers if not key.endswith("output.bias")}
    alpha |= {f"crate.layers.{layer}.sparsify.ista.decoder_dictionary" for layer in range(2)}
    assert sorted(model_of("alpha").state_dict()) == sorted([*OTHER_KEYS, *alpha])


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@every_variant
def test_half_precision(variant, dtype, tolerance, tmp_path):
    model = model_of(variant)
    images = images_of(model)
    expected = model(images).logits
    half = copy.deepcopy(model).to(dtype)
    logits = half(images, **ALL_STATES).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    close(logits.float(), expected, rtol=0, atol=tolerance * expected.abs().max().item())
    half.save_pretrained(tmp_path)
    loaded = CrateForImageClassification.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert torch.equal(loaded(images).logits, logits)


@pytest.mark.parametrize("variant", ["complete", "alpha", "tied output", "joint orthonormal", "rectangular"])
def test_compiled_graph_equals_eager_mode(variant):
    """Without gradients and with states, with gradients and without states.

    The states are recorded once before compilation: transformers installs its hooks under a lock, which
    ``fullgraph=True`` cannot trace (upstream).
    """
    model = model_of(variant)
    images, labels = images_of(model), torch.tensor([0, 1])
    expected, expected_states = model(images, labels=labels), model(images, labels=labels, **ALL_STATES)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        states = compiled(images, labels=labels, **ALL_STATES)
        assert_same_outputs(states, expected_states, rtol=1e-5, atol=1e-5)
    outputs = compiled(images, labels=labels)
    close(outputs.loss, expected.loss)
    plain = gradients_of(model, images)
    model.zero_grad()
    outputs.loss.backward()
    assert_same_outputs({n: p.grad for n, p in model.named_parameters()}, plain, rtol=1e-4, atol=1e-5)


# --- image sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["size", "scale", "scale_if_resized"])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (4, 12), (20, 4)])
def test_other_image_sizes_and_aspects(flavour, size):
    model = model_of(position_interpolation=flavour)
    embeddings = model.crate.embeddings
    table = embeddings.position_embeddings.detach().clone()
    grid = (size[0] // 4, size[1] // 4)
    outputs = model(images_of(model, size=size), output_hidden_states=True)
    assert outputs.hidden_states[-1].shape == (2, 1 + grid[0] * grid[1], 16)
    assert torch.equal(embeddings.position_embeddings, table)
    positions = embeddings.positions(grid)
    assert torch.equal(positions[:, 0], table[:, 0])
    same = positions.shape == table.shape and torch.equal(positions, table)
    assert same == (size == (8, 8) and flavour != "scale")


def test_interpolation_flavours_differ_and_half_types_are_interpolated_in_float32():
    tables = {}
    for flavour in ("size", "scale", "scale_if_resized"):
        tables[flavour] = model_of(position_interpolation=flavour).crate.embeddings.positions((3, 5))
    assert torch.equal(tables["scale"], tables["scale_if_resized"])
    assert not torch.allclose(tables["size"], tables["scale"])
    half = model_of().to(torch.bfloat16).crate.embeddings.positions((3, 5))
    assert half.dtype == torch.bfloat16
    close(half.float(), tables["size"], rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 1, 8, 8), r"1 channels, the model was made for 3.*num_channels=1"),
        ((1, 3, 8, 10), r"image size 8x10 does not fit patch_size 4x4"),
        ((1, 3, 2, 8), r"image size 2x8 does not fit patch_size 4x4"),
        ((1, 3, 0, 8), r"image size 0x8 does not fit"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        model_of()(torch.zeros(shape))
