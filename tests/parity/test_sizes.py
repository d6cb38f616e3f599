"""Named sizes against the published parameter counts and tables."""

import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, list_sizes
from opencrate.conversion import official_name
from tests.golden import golden_meta

COUNTS = golden_meta("param_counts")["counts"]
CRATE, EMERGENCE = COUNTS["CRATE classifier (num_classes=1000)"], COUNTS["crate-emergence-notebooks"]
ALPHA = COUNTS["CRATE-alpha torch"]
OFFICIAL = {
    "tiny": CRATE["CRATE_tiny"],
    "small": CRATE["CRATE_small"],
    "base": CRATE["CRATE_base"],
    "large": CRATE["CRATE_large"],
    "emergence-small": EMERGENCE["CRATE_small_21k"],
    "emergence-base": EMERGENCE["CRATE_base_21k"],
    "emergence-demo": EMERGENCE["CRATE_base_demo"],
    "alpha-base": ALPHA["CRATE_base"],
    "alpha-large": ALPHA["CRATE_large"],
}

# (depth, width d, heads K, head width p, patch, classes) of every named size.
ROWS = {
    "tiny": (12, 384, 6, 64, 16, 1000),
    "small": (12, 576, 12, 48, 16, 1000),
    "base": (12, 768, 12, 64, 16, 1000),
    "large": (24, 1024, 16, 64, 16, 1000),
    "emergence-tiny": (12, 192, 3, 64, 8, 21842),
    "emergence-small": (12, 384, 6, 64, 8, 21842),
    "emergence-base": (12, 768, 12, 64, 8, 21842),
    "emergence-demo": (12, 768, 6, 128, 8, 21842),
    "alpha-tiny": (12, 192, 3, 64, 16, 1000),
    "alpha-small": (12, 576, 12, 48, 16, 1000),
    "alpha-base": (12, 768, 12, 64, 16, 1000),
    "alpha-large": (24, 1024, 16, 64, 14, 1000),
    "alpha-huge": (32, 1280, 16, 80, 14, 1000),
    "digits": (6, 96, 4, 24, 2, 10),
    "laptop": (6, 128, 4, 32, 4, 10),
}


def on_meta(size: str, **overrides) -> CrateForImageClassification:
    with torch.device("meta"):
        return CrateForImageClassification(CrateConfig.from_size(size, **overrides))


def test_every_size_has_its_row():
    assert list(ROWS) == list_sizes()["crate"]


@pytest.mark.parametrize("size", ROWS)
def test_configuration_rows(size):
    c = CrateConfig.from_size(size)
    row = (c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.head_dim, c.patch_size, c.num_labels)
    assert row == ROWS[size]


@pytest.mark.parametrize("size", OFFICIAL)
def test_parameter_counts_to_the_last_digit(size):
    model = on_meta(size)
    assert sum(p.numel() for p in model.parameters()) == OFFICIAL[size]["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == OFFICIAL[size]["trainable"]
    assert len(model.state_dict()) == OFFICIAL[size]["state_dict_entries"]


def test_emergence_tiny_has_the_papers_count():
    count = sum(p.numel() for p in on_meta("emergence-tiny").parameters())
    assert round(count / 1e6, 2) == 5.74  # the paper's 5.74 M; no code was published for it


@pytest.mark.parametrize("size, patch", [("alpha-base", p) for p in (32, 16, 8)] + [("alpha-large", 14)])
def test_alpha_patch_variants_build_with_official_names(size, patch):
    model = on_meta(size, patch_size=patch)
    assert model.crate.embeddings.position_embeddings.shape[1] == 1 + (224 // patch) ** 2
    assert all(official_name(name, "crate_alpha") != name for name in model.state_dict())


def test_unknown_sizes_and_overrides():
    with pytest.raises(ValueError, match=r"unknown CrateConfig size 'smal'; did you mean 'small'\?"):
        CrateConfig.from_size("smal")
    assert CrateConfig.from_size("tiny", num_labels=7, image_size=384).num_labels == 7
