"""CrateConfig: strict types, a guard against typing errors, and a line of explanation for what cannot be built."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from opencrate import CrateConfig
from opencrate._suggest import suggest
from opencrate.configuration_crate import pair

from .common import config_of


def test_defaults_are_crate_base():
    config = CrateConfig()
    assert config.to_dict() == CrateConfig.from_size("base", num_labels=2).to_dict()
    assert (config.head_dim, config.grid_size, config.num_labels) == (64, (14, 14), 2)
    assert (config.ista_start, config.head_layer_norm_eps) == ("input", 1e-5)
    assert CrateConfig.from_size("alpha-base").ista_start == "zero"


@pytest.mark.parametrize("variant", ["complete", "alpha", "rectangular"])
def test_save_and_load(variant, tmp_path):
    config = config_of(variant, out_features=["stage1", "stage2"])
    config.save_pretrained(tmp_path)
    loaded = CrateConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.out_features == ["stage1", "stage2"] and loaded.grid_size == config.grid_size


@pytest.mark.parametrize(
    "wrong, right",
    [("hiden_size", "hidden_size"), ("num_hidden_layer", "num_hidden_layers"), ("ista_lamda", "ista_lambda")],
)
def test_misspelt_names_are_errors_with_a_suggestion(wrong, right):
    with pytest.raises(ValueError, match=rf"CrateConfig: unknown argument '{wrong}'; did you mean '{right}'\?"):
        CrateConfig(**{wrong: 3})


def test_names_that_resemble_nothing_list_what_is_known():
    with pytest.raises(ValueError, match=r"unknown argument 'zzz'; known: .*hidden_size, "):
        CrateConfig(zzz=1)
    assert suggest("b", ["alpha", "beta"]) == "known: alpha, beta"


@pytest.mark.parametrize(
    "field, value",
    [
        ("hidden_size", "96"),
        ("hidden_size", 96.0),
        ("hidden_size", True),
        ("image_size", "32"),
        ("image_size", (8, 8, 8)),
        ("pool", "max"),
        ("attention_output", "free"),
        ("position_interpolation", "bicubic"),
        ("ista_threshold", "hard"),
        ("ista_residual", 1),
        ("compression_kappa", "0.5"),
    ],
)
def test_wrong_types_and_words_name_the_field(field, value):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        CrateConfig(**{field: value})


@pytest.mark.parametrize("field", ["attention_scale", "compression_kappa", "ista_lambda", "subspace_penalty"])
def test_whole_numbers_pass_where_a_number_is_meant(field):
    assert getattr(config_of(**{field: 1}), field) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        *(
            ({name: 0}, f"{name}=0 is not allowed; it must be a whole number of at least 1")
            for name in ("num_hidden_layers", "num_channels")
        ),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"ista_num_steps": 0}, "ista_num_steps=0"),
        ({"dictionary_expansion": 0}, "dictionary_expansion=0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 .* at least 1e-12"),
        ({"head_layer_norm_eps": -1.0}, "head_layer_norm_eps=-1.0"),
        ({"ista_step_size": 0}, "ista_step_size=0"),
        ({"compression_eps": float("nan")}, "compression_eps=nan"),
        ({"ista_lambda": -0.1}, "ista_lambda=-0.1 .* at least 0"),
        ({"subspace_penalty": -1}, "subspace_penalty=-1"),
        ({"dictionary_penalty": -1}, "dictionary_penalty=-1"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"image_size": 10}, "image_size=10 is not allowed; it must be a multiple of patch_size 4"),
        ({"image_size": [8, 6]}, "image_size"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": [8]}, r"one int or a \(height, width\) pair, got \[8\]"),
        ({"patch_size": [4, 4, 4]}, r"pair, got \[4, 4, 4\]"),
        ({"hidden_size": 15}, "hidden_size 15 is not a multiple of num_attention_heads 2.* set head_dim"),
        ({"attention_output": "none", "head_dim": 5}, "attention_output='none' .* K p = d only"),
        ({"subspace_constraint": "each", "head_dim": 17}, "subspace_constraint='each' .* p <= d only"),
        ({"subspace_constraint": "joint", "head_dim": 9}, "subspace_constraint='joint' .* K p <= d only"),
        ({"ista_start": "input", "dictionary_expansion": 2, "dictionary_decode": "tied"}, "ista_start='input'"),
        ({"dictionary_expansion": 2}, "dictionary_decode='none' .* 'tied' or 'untied'"),
        ({"out_features": ["stage9"]}, "out_features"),
    ],
)
def test_what_cannot_be_built_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_pair():
    assert pair(8) == (8, 8) and pair([8, 12]) == pair((8, 12)) == (8, 12)
