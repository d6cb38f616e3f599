"""The converted CRATE autoencoder against numbers from the published code, tensor by tensor."""

import pytest
import torch
from torch import Tensor

from opencrate import CrateMAEConfig, CrateMAEForPreTraining, load_official, to_official
from opencrate.modeling_crate_mae import sincos_positions
from tests.golden import golden_meta, golden_root, load_golden, sub_dict

from .common import compare, gradients

SET, FAMILY = "crate_mae", "crate_mae"
FORWARD = ("main", "mask_ratio_0.6", "other_lambda", "layernorm_eps_probe")
DTYPES = [torch.float32, torch.float64]
STATES = ("hidden_states", "compressed_states", "projected_states", "sparse_codes", "attentions")


def converted(file: str, dtype: torch.dtype, **overrides) -> CrateMAEForPreTraining:
    meta = golden_meta(SET)["files"]
    config = meta[file + ".safetensors"].get("config")
    config = config if isinstance(config, dict) else meta["main.safetensors"]["config"]
    weights = sub_dict(load_golden(SET, "main"), "state_dict.") | sub_dict(load_golden(SET, file), "override.")
    return load_official(
        {name: value.to(dtype) for name, value in weights.items()},
        FAMILY,
        num_attention_heads=config["num_heads"],
        decoder_num_attention_heads=config["decoder_num_heads"],
        image_size=config["img_size"],
        ista_lambda=config["lambd"],
        **{"mask_ratio": meta[file + ".safetensors"].get("mask_ratio", 0.75), **overrides},
    )


def computed_tensors(model: CrateMAEForPreTraining, images: Tensor, noise: Tensor) -> tuple[dict, Tensor]:
    """Golden name -> our tensor, of one run with every state recorded; and the loss on standardised patches."""
    outputs = model(images, noise=noise, **{f"output_{name}": True for name in STATES})
    model.config.norm_pix_loss = True
    normalised = model(images, noise=noise).loss
    model.config.norm_pix_loss = False
    tensors = {
        "patch_embed": model.crate.embeddings.patch_embeddings(images),
        "encoder_tokens_in": outputs.hidden_states[0],
        "latent": outputs.latent,
        "mask": outputs.mask,
        "ids_restore": outputs.ids_restore,
        "pred": outputs.logits,
        "pred_image": model.unpatchify(outputs.logits),
        "target_patches": model.patchify(images),
        "loss.norm_pix_false": outputs.loss[None],
        "loss.norm_pix_true": normalised[None],
    }
    for part, prefix in (("encoder", ""), ("decoder", "decoder_")):
        for layer in range(len(outputs[f"{prefix}compressed_states"])):
            tensors[f"{part}{layer}.attention"] = outputs[f"{prefix}attentions"][layer]
            tensors[f"{part}{layer}.half"] = outputs[f"{prefix}compressed_states"][layer]
            tensors[f"{part}{layer}.out"] = outputs[f"{prefix}hidden_states"][layer + 1]
    return {name: lambda value=value: value for name, value in tensors.items()}, normalised


def test_every_golden_file_is_covered():
    files = {path.stem for path in (golden_root() / SET).glob("*.safetensors")}
    assert files == {*FORWARD, "encoder_visualisation"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("file", FORWARD)
def test_forward_and_gradients(file, dtype, attention):
    golden, main = load_golden(SET, file), load_golden(SET, "main")
    model = converted(file, dtype, attn_implementation=attention)
    assert model.dtype == dtype and model.decoder.config._attn_implementation == attention
    computed, loss = computed_tensors(model, main["images"].to(dtype), golden.get("noise", main["noise"]))
    if file == "main":
        computed |= gradients(model, loss, FAMILY)
        without = set(golden_meta(SET)["files"]["main.safetensors"]["parameters_without_gradient"])
        assert {name.removeprefix("grad.") for name in golden if name.startswith("grad.")}.isdisjoint(without)
    for name in ("mask", "ids_restore"):
        assert name not in golden or torch.equal(computed[name](), golden[name])
    compare(f"{SET}/{file} {dtype} {attention}", golden, computed, inputs=["images", "noise"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_images_of_other_sizes(dtype, attention):
    golden = load_golden(SET, "encoder_visualisation")
    overrides = {"mask_ratio": 0.0, "position_interpolation": "scale_if_resized", "attn_implementation": attention}
    model = converted("main", dtype, **overrides)
    table = model.crate.embeddings.position_embeddings.clone()
    computed = {}
    sizes = [(h, w) for h, w in ((32, 32), (48, 48), (24, 40)) if f"h{h}_w{w}.images" in golden]
    assert (24, 40) in sizes  # the fixtures hold this one only
    for height, width in sizes:
        name = f"h{height}_w{width}"
        images = golden[f"{name}.images"].to(dtype)
        outputs = model.crate(images, **{f"output_{state}": True for state in STATES})
        assert not outputs.mask.any()
        tensors = {
            "pos_embedding": model.crate.embeddings.positions((height // 4, width // 4)),
            "tokens_in": outputs.hidden_states[0],
        }
        for layer in range(2):
            maps, projected = outputs.attentions[layer], outputs.projected_states[layer]
            tensors[f"layer{layer}.attention"] = maps
            tensors[f"layer{layer}.attention_cls_row"] = maps[:, :, 0]
            tensors[f"layer{layer}.key_raw"] = projected.transpose(1, 2).flatten(2)
        computed |= {f"{name}.{key}": lambda value=value: value for key, value in tensors.items()}
    inputs = [name for name in golden if name.endswith(".images")]
    compare(f"{SET}/encoder_visualisation {dtype} {attention}", golden, computed, inputs)
    assert torch.equal(model.crate.embeddings.position_embeddings, table)


def test_layer_norm_eps_is_the_familys():
    model = converted("main", torch.float32)
    eps = {name: m.eps for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert eps.pop("crate.norm") == eps.pop("decoder.norm") == 1e-6
    assert len(eps) == 8 and set(eps.values()) == {1e-5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip_is_key_for_key_and_bit_for_bit(dtype, tmp_path):
    official = {k: v.to(dtype) for k, v in sub_dict(load_golden(SET, "main"), "state_dict.").items()}
    model = load_official(official, FAMILY, num_attention_heads=4)
    model.save_pretrained(tmp_path)
    for back in (to_official(model), to_official(CrateMAEForPreTraining.from_pretrained(tmp_path))):
        assert back.keys() == official.keys()
        for name, value in official.items():
            assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


def test_a_tied_decoder_takes_only_tensors_that_are_tied():
    config = CrateMAEConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, tie_decoder=True)
    model = CrateMAEForPreTraining(config)
    options = {"num_attention_heads": 2, "tie_decoder": True}
    official = to_official(model)
    back = to_official(load_official(official, FAMILY, **options))
    assert all(torch.equal(back[name], value) for name, value in official.items())
    official = sub_dict(load_golden(SET, "main"), "state_dict.")
    with pytest.raises(ValueError, match="differ, but this configuration ties them"):
        load_official(official, FAMILY, num_attention_heads=4, tie_decoder=True)


def test_the_fixed_table_is_the_published_one():
    golden = load_golden(SET, "main")
    for name in ("pos_embed", "decoder_pos_embed"):
        torch.testing.assert_close(sincos_positions((8, 8), 48), golden[f"state_dict.{name}"], atol=1e-6, rtol=0)


def test_checkpoints_that_do_not_fit():
    official = sub_dict(load_golden(SET, "main"), "state_dict.")
    with pytest.raises(ValueError, match="num_attention_heads cannot be inferred"):
        load_official(official, FAMILY)
    with pytest.raises(ValueError, match="decoder_num_attention_heads=5 is not allowed"):
        load_official(official, FAMILY, num_attention_heads=4, decoder_num_attention_heads=5)
    with pytest.raises(ValueError, match="does not look like family 'crate'"):
        load_official(official, "crate", num_attention_heads=4)
    del official["mask_token"]
    with pytest.raises(ValueError, match=r"missing \['mask_token'\]"):
        load_official(official, FAMILY, num_attention_heads=4)


def test_a_model_without_published_counterpart_has_no_official_names():
    config = CrateMAEConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    config.mask_tokens_in_encoder = False
    with pytest.raises(ValueError, match="mask_tokens_in_encoder=False has no counterpart"):
        to_official(CrateMAEForPreTraining(config))


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_counts_are_the_published_ones(size):
    """Ours are parameters and buffers; the published code has them all as parameters, two tables of them fixed."""
    published = golden_meta("param_counts")["counts"]["CRATE-MAE"][f"mae_crate_{size}"]
    with torch.device("meta"):
        model = CrateMAEForPreTraining(CrateMAEConfig.from_size(size))
    state = model.state_dict()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = model.config.hidden_size
    assert len(state) == published["state_dict_entries"]
    assert sum(value.numel() for value in state.values()) == published["parameters"]
    assert parameters == published["trainable"] - width * width - width  # decoder_embed
