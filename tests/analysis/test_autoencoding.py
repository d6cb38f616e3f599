"""An autoencoder's measures are those of its own layers and states; the sentences are computed from them."""

import pytest
import torch
from torch.nn.functional import normalize

import opencrate
from opencrate.analysis.autoencoder import AutoencoderMeasures, _mirrored, measure_autoencoder, require_layered
from opencrate.analysis.maths.inverse import inverse_errors, relative_error
from opencrate.analysis.record.states import record
from opencrate.objective import subspace_coding_rate
from opencrate.reports.autoencoder import (
    autoencoder_part,
    describe,
    errors_frame,
    page,
    plot_inverse,
    plot_noise,
    plot_rates,
    rates_frame,
)
from opencrate.store.saved import untrained_copy

from .models import tiny_autoencoder, tiny_crate

LEVELS = (0.0, 0.5)


def pixels_of(count=5):
    return torch.randn(count, 1, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return tiny_autoencoder()


@pytest.fixture(scope="module")
def found(model):
    return measure_autoencoder(model, pixels_of().split(2), eps=0.4, noise_levels=LEVELS)


def test_errors_are_those_of_the_layers(model, found):
    with torch.no_grad():
        states = model.crate(pixels_of(), noise=torch.zeros(5, 6), output_hidden_states=True)
    assert states.mask.sum() == 15  # the model masks; the measures are of whole images
    model.config.mask_ratio, own = 0.0, model.config.mask_ratio
    with torch.no_grad():
        Z = model.crate(pixels_of(), output_hidden_states=True).hidden_states
        f, g = model.crate.layers, model.decoder.layers
        backs = [g[1](f[0](Z[0])), g[0](f[1](Z[1])), g[1](g[0](f[1](f[0](Z[0]))))]
    model.config.mask_ratio = own
    for key, name in (("", False), ("_direction", True)):
        values = found.values
        expected = [relative_error(back, Z[place], name) for back, place in zip(backs, (0, 1, 0))]
        torch.testing.assert_close(values[f"layer{key}_error"].mT.float(), torch.stack(expected[:2]))
        torch.testing.assert_close(values[f"network{key}_error"][:, 1].float(), expected[2])
        torch.testing.assert_close(values[f"network{key}_error"][:, 0], values[f"layer{key}_error"][:, 0])
    torch.testing.assert_close(found.values["noise_error"][:, 0], found.values["layer_direction_error"].mean(1))
    torch.testing.assert_close(found.values["noise_left"][:, 0], found.values["noise_error"][:, 0])
    assert (found.values["noise_put"][:, 0] == 0).all() and (found.values["noise_put"][:, 1] > 0.2).all()


def test_rates_are_those_of_the_recorded_states(model, found):
    whole = tiny_autoencoder(mask_ratio=0.0, loss_on="all")
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        out = whole(pixels_of(), output_hidden_states=True, output_compressed_states=True)
    U = whole.crate.layers[1].compress.mssa.bases(), whole.decoder.layers[0].expand.mssa.bases()
    expected = {
        "encoder_before": (out.hidden_states[1], U[0], 1),
        "encoder_half": (out.compressed_states[1], U[0], 1),
        "decoder_before": (out.decoder_compressed_states[0], U[1], 0),
        "decoder_after": (out.decoder_hidden_states[1], U[1], 0),
    }
    for key, (Z, bases, layer) in expected.items():
        torch.testing.assert_close(found.values[key][:, layer].float(), subspace_coding_rate(Z, bases, 0.4))
        unit = subspace_coding_rate(normalize(Z, dim=-1), bases, 0.4)
        torch.testing.assert_close(found.values[f"{key}_unit"][:, layer].float(), unit)
    target = whole.patchify(pixels_of())
    share = (out.logits - target).square().mean((1, 2)) / target.flatten(1).var(1, correction=0)
    torch.testing.assert_close(found.values["whole_image"].float(), share)


def test_an_autoencoder_is_recorded_as_its_encoder_on_whole_images(model, found):
    (states,) = record(model, [pixels_of()])
    assert len(states.layers) == 2 and states.layers[0].before.shape == (5, 7, 12)
    report = opencrate.analyze(model, pixels_of(), eps=0.4, initial="untrained")
    torch.testing.assert_close(
        report.measures.values["subspace_rate"], found.values["encoder_half"], rtol=1e-5, atol=1e-5
    )
    alone = opencrate.analyze(model.crate, pixels_of(), eps=0.4)
    torch.testing.assert_close(report.measures.values["rate"], alone.measures.values["rate"])
    assert report.model_type == "crate_mae" and report.subspace_kind == "learned U" and model.config.mask_ratio == 0.5


def test_the_inverse_of_a_batch_is_that_of_each_image():
    Z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    together = inverse_errors([torch.tanh] * 2, [torch.sin] * 2, Z)
    for index in range(3):
        alone = inverse_errors([torch.tanh] * 2, [torch.sin] * 2, Z[index])
        torch.testing.assert_close(together.per_layer[:, index], alone.per_layer)
        torch.testing.assert_close(together.network[:, index], alone.network)


def test_masks_and_noise_follow_the_seed(model):
    one, same, other = (
        measure_autoencoder(model, [pixels_of()], noise_levels=LEVELS, seed=seed).values for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["noise_left"], other["noise_left"]) and not torch.equal(one["masked"], other["masked"])
    assert torch.equal(one["layer_error"], other["layer_error"])


@pytest.mark.parametrize(("depth", "layers"), [(1, (2,)), (3, (1, 2))])
def test_a_decoder_of_another_depth_mirrors_the_last_layers(depth, layers):
    model = tiny_autoencoder(decoder_num_hidden_layers=depth, mask_ratio=0.0, loss_on="all")
    found = measure_autoencoder(model, [pixels_of()], noise_levels=(0.0,))
    with torch.no_grad():
        states = model.crate(pixels_of(), output_hidden_states=True).hidden_states
        back = model.decoder.layers[0](model.crate.layers[1](states[1]))
    assert found.layers == layers and found.values["layer_error"].shape == (5, len(layers))
    torch.testing.assert_close(found.values["layer_error"][:, -1].float(), relative_error(back, states[1]))
    torch.testing.assert_close(found.values["noise_error"][:, 0], found.values["layer_direction_error"].mean(1))
    assert found.values["decoder_after"].shape == (5, depth) and found.values["encoder_half"].shape == (5, 2)


@pytest.mark.parametrize("position", ["absolute", "relative_bias", "rope", "absolute+both"])
def test_mirrored_layers_are_the_models_own_wherever_it_has_its_positions(position):
    settings = {"position": position, "head_dim": 4, "decoder_num_hidden_layers": 2}
    model = tiny_autoencoder(mask_ratio=0.0, loss_on="all", **settings)
    for name, values in model.named_parameters():
        if "position_bias" in name:
            torch.nn.init.normal_(values)
    with torch.no_grad():
        found = model(pixels_of(), output_hidden_states=True)
        Z, Y = found.hidden_states, found.decoder_hidden_states
        steps = _mirrored(model, pixels_of())
        for layer, (encode, decode) in enumerate(steps):
            torch.testing.assert_close(encode(Z[layer]), Z[layer + 1])
            torch.testing.assert_close(decode(Y[1 - layer]), Y[2 - layer])
    assert measure_autoencoder(model, [pixels_of()]).values["layer_error"].isfinite().all()


def test_whole_images_have_no_masked_patches():
    found = measure_autoencoder(tiny_autoencoder(mask_ratio=0.0, loss_on="all"), [pixels_of()])
    assert "masked" not in found.values
    assert any("a masks nothing" in line for line in describe({"a": found}))


def test_untrained_copies_can_differ_in_a_field(model):
    tied = untrained_copy(model, 0, tie_decoder=True)
    assert tied.decoder.layers[0].synthesize.dictionary is tied.crate.layers[1].sparsify.ista.dictionary
    assert not model.config.tie_decoder
    same = untrained_copy(model, 0)
    assert torch.equal(same.crate.layers[0].sparsify.ista.dictionary, tied.crate.layers[0].sparsify.ista.dictionary)


def made_up(error: float, slope: float, loss_on: str = "all") -> AutoencoderMeasures:
    """Four images and three layers, R^c moving by `slope` from layer to layer and within each."""
    jitter = torch.tensor([-0.01, 0.0, 0.01, 0.02], dtype=torch.float64)[:, None]
    path = 10 + slope * torch.arange(3, dtype=torch.float64) + jitter
    errors = (error + jitter).expand(4, 3)
    values = {f"{what}{kind}_error": errors for what in ("layer", "network") for kind in ("", "_direction")}
    for suffix in ("", "_unit"):
        for before, after in (("encoder_before", "encoder_half"), ("decoder_before", "decoder_after")):
            values |= {before + suffix: path, after + suffix: path + slope + jitter / 10}
    values |= {f"noise_{key}": errors[:, :2] for key in ("error", "left")}
    values |= {"noise_put": torch.tensor([[0.0, 2.0]], dtype=torch.float64).expand(4, 2)}
    values |= {"whole_image": errors[:, 0], "masked": errors[:, 0]}
    values |= {"masked_mean_colour": errors[:, 0] + 1 + jitter[:, 0], "masked_nearest": errors[:, 0]}
    return AutoencoderMeasures(0.5, loss_on, (1, 2, 3), LEVELS, values)


def test_sentences_follow_the_numbers():
    subjects = {"a": made_up(0.1, -1), "b": made_up(0.5, 1, "masked")}
    text = "\n".join(describe(subjects))
    assert list(errors_frame(subjects)["one layer"]) == ["10.5 % (9.5 to 11.5)", "50.5 % (49.5 to 51.5)"]
    assert "a: R^c should fall along the encoder and rise along the decoder; of 4 such moves" in text
    rates = rates_frame(subjects)
    assert (
        rates["it"].tolist()
        == ["falls, as predicted"] * 2
        + ["falls, predicted: rises"] * 2
        + ["rises, predicted: falls"] * 2
        + ["rises, as predicted"] * 2
    )
    assert rates["change (nats)"][0] == "-2.0 (-2.0 to -2.0)" and rates["the step"][0] == "lowers it in 3 of 3 layers"
    assert "below that of mean colour" in text
    assert "not significantly different from that of the nearest visible patch" in text
    assert "started: at noise of relative length 0.50." in text
    assert "a undoes directions, one layer: better than b" in text
    assert text.count("the loss was on masked patches only") == 1


def test_undecided_and_single_layers_read_well():
    still = made_up(0.1, 0)
    values = {
        key: value[:, :1] if value.ndim == 2 and not key.startswith("noise") else value
        for key, value in still.values.items()
    }
    one = AutoencoderMeasures(0.5, "all", (1,), LEVELS, values)
    assert "layers" not in "".join(rates_frame({"a": one})["the step"]) and "None" not in "".join(describe({"a": one}))
    assert ", none held" in describe({"a": one})[1]
    equal = made_up(0.1, 0)
    equal.values["encoder_half"] = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]]).double()
    assert rates_frame({"a": equal})["it"][0] == "undecided, predicted: falls"


def test_the_page_has_its_table_and_figures(found):
    report = page(found)
    (part,) = report.parts
    assert (
        len(part.figures) == 3
        and len(part.tables) == 2
        and part.sentences == autoencoder_part({"the model": found}).sentences
    )
    assert report.summary and report.subtitle == "5 whole images"


def test_figures_show_every_model():
    subjects = {"a": made_up(0.1, -1), "a, untrained": made_up(0.5, 1)}
    for plot in (plot_inverse, plot_rates, plot_noise):
        figure = plot(subjects)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == list(subjects)


@pytest.mark.parametrize(
    ("model", "words"),
    [(tiny_crate(), "not a CRATE autoencoder"), (tiny_autoencoder(compression="attention"), "has no subspaces")],
)
def test_models_that_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        require_layered(model)


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"noise_levels": (-0.1,)}, {"noise_levels": ()}])
def test_bad_settings(options, model):
    with pytest.raises(ValueError, match="need eps > 0 and levels >= 0"):
        measure_autoencoder(model, [pixels_of()], **options)
