"""The reconstruct experiment on trained autoencoders: rows, words, untrained copies, settings."""

import pytest
import torch

from opencrate.analysis.autoencoder import measure_autoencoder
from opencrate.reports.experiments.autoencoder import describe, figures, table
from opencrate.studies.experiments.autoencoder import AutoencoderSettings, run, with_untrained

from ..analysis.models import tiny_autoencoder


def pixels_of(count=6):
    return torch.randn(count, 1, 4, 6, generator=torch.Generator().manual_seed(1))


def test_rows_are_the_measures():
    settings = AutoencoderSettings(images=6, noise=(0.0, 1.0))
    models = with_untrained({"run": tiny_autoencoder(seed=3)}, settings.seed)
    assert list(models) == ["run", "run, untrained", "run, untrained, tied"]
    found = run(models, [pixels_of()], settings, "noise")
    values = measure_autoencoder(models["run"], [pixels_of()], noise_levels=(0.0, 1.0)).values
    rows = [row for row in found.rows if row["model"] == "run"]
    assert len(rows) == sum(value.shape[1] if value.ndim == 2 else 1 for value in values.values())
    layer = {row["layer_or_level"]: row for row in rows if row["quantity"] == "layer_error"}
    assert [layer[number]["mean"] for number in (1, 2)] == pytest.approx(values["layer_error"].mean(0).tolist())
    assert all(row["low"] <= row["mean"] <= row["high"] and row["images"] == 6 for row in rows)
    levels = [row["layer_or_level"] for row in rows if row["quantity"] == "noise_left"]
    assert levels == [0.0, 1.0] and describe(found)[0] == "Images: noise."
    assert sum("undoes directions" in line for line in describe(found)) == 2
    assert table(found)["model"].tolist() == list(models) and table(found).shape[1] == 7
    assert set(figures(found)) == {"autoencoder_inverse", "autoencoder_rates", "autoencoder_noise"}


def test_untrained_copies_stand_once_for_each_configuration():
    plain, tied = tiny_autoencoder(), tiny_autoencoder(tie_decoder=True)
    assert list(with_untrained({"a": plain, "b": tiny_autoencoder(1), "c": tied}, 0)) == [
        "a",
        "b",
        "c",
        "a, untrained",
        "c, untrained",
    ]
    for other in (tiny_autoencoder(decoder_num_attention_heads=4), tiny_autoencoder(decoder_num_hidden_layers=1)):
        assert list(with_untrained({"a": other}, 0)) == ["a", "a, untrained"]  # cannot be tied


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 1}, "images=1: must be a whole number of at least 2"),
        ({"eps": 0.0}, "eps=0.0: must be a number of at least 1e-12"),
        ({"noise": (-1.0,)}, "noise=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        AutoencoderSettings(**changes)
