"""What is measured is kept: in a file, by other processes, and by the runs that are resumed."""

import json
import time

import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, attention, calibration, products


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "choices.json"
    monkeypatch.setenv(calibration.VARIABLE, str(path))
    monkeypatch.setattr(calibration, "_choices", {})
    return path


def slow() -> torch.Tensor:
    time.sleep(0.004)
    return torch.ones(2)


def fast() -> torch.Tensor:
    return torch.ones(2)


def wrong() -> torch.Tensor:
    return torch.full((2,), 1.01)


def test_the_faster_way_is_chosen_once(cache):
    made = []

    def ways():
        made.append(1)
        return {"exact": fast, "rule": slow, "other": fast}

    assert [calibration.choose("work", "rule", ways, 1e-6) for _ in range(2)] == ["other", "other"] and made == [1]
    (key,) = calibration.choices()
    entry = json.loads(cache.read_text())[key]
    assert entry["way"] == "other" and entry["ms"]["rule"] > entry["ms"]["other"] and entry["error"]["other"] == 0
    calibration._choices.clear()  # another process
    assert calibration.choose("work", "rule", ways, 1e-6) == "other" and made == [1]


def test_a_gain_within_the_noise_or_a_wrong_result_is_not_taken(cache):
    assert calibration.choose("alike", "rule", lambda: {"exact": fast, "rule": slow, "other": slow}, 1e-6) == "rule"
    assert calibration.choose("wrong", "rule", lambda: {"exact": fast, "rule": slow, "other": wrong}, 1e-3) == "rule"
    assert calibration.choose("bound", "rule", lambda: {"exact": fast, "rule": slow, "other": wrong}, 0.1) == "other"


DAMAGED = ["", "[]", "\x00", "{key: 3}", '{key: {"way": "turbo"}}', '{key: {"way": "turbo", "ms": {"rule": 1}}}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_measured_again(cache, content):
    """A way that nothing here knows is no choice; the file is then right again."""
    cache.parent.mkdir()
    cache.write_text(content.replace("key", json.dumps(f"work, {torch.get_num_threads()} threads")))
    assert calibration.choose("work", "rule", lambda: {"exact": fast, "rule": slow, "other": fast}, 1e-6) == "other"
    assert [entry["way"] for entry in json.loads(cache.read_text()).values()] == ["other"]


def test_another_process_was_faster(cache, monkeypatch):
    """Its choice holds for both, and nothing of the file is lost."""

    def ways():
        cache.parent.mkdir()
        key = f"work, {torch.get_num_threads()} threads"
        cache.write_text(json.dumps({"else": {"way": "x"}, key: {"way": "rule", "ms": {"rule": 1.0}}}))
        return {"exact": fast, "rule": slow, "other": fast}

    assert calibration.choose("work", "rule", ways, 1e-6) == "rule"
    assert json.loads(cache.read_text())["else"] == {"way": "x"}


def test_a_folder_that_cannot_be_written_to(cache):
    cache.parent.write_text("a file where the folder should be")
    assert calibration.choose("work", "rule", lambda: {"exact": fast, "rule": slow, "other": fast}, 1e-6) == "other"


@pytest.mark.parametrize("setting", ["0", "false", "off"])
def test_switched_off(setting, monkeypatch):
    monkeypatch.setenv(calibration.VARIABLE, setting)
    assert calibration.choose("new work", "rule", lambda: pytest.fail("measured"), 1e-6) == "rule"
    assert not [work for work in calibration.choices() if "new work" in work]


def test_a_model_is_measured_within_a_tenth_of_a_second_for_each_class(cache, monkeypatch):
    """The random numbers of the caller stay as they were; the values are those without a measurement."""
    config = CrateConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4)
    torch.manual_seed(0)
    model, images = CrateForImageClassification(config), torch.randn(8, 3, 32, 32)
    longest = []
    measured = calibration._measured

    def timed(*arguments):
        start = time.perf_counter()
        way = measured(*arguments)
        longest.append(time.perf_counter() - start)
        return way

    monkeypatch.setattr(calibration, "_measured", timed)
    state = torch.get_rng_state()
    logits = model(images).logits
    assert torch.equal(torch.get_rng_state(), state)
    works = " ".join(calibration.choices())
    assert "attention with gradient, float32, 16 x 128 tokens of 32" in works and "product, float32" in works
    assert min(longest) < 0.1
    monkeypatch.setenv(calibration.VARIABLE, "0")
    calibration._choices.clear()
    torch.testing.assert_close(model(images).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_no_class_of_common_shapes_takes_longer_than_a_quarter_of_a_second(cache):
    """On an idle machine."""
    for dtype in (torch.float32, torch.bfloat16):
        for num_tokens, dim in ((65, 32), (197, 64), (256, 64), (1024, 64), (4097, 64)):
            for causal in (False, True):
                V = torch.zeros(8, 12, num_tokens, dim, dtype=dtype, requires_grad=True)
                start = time.perf_counter()
                attention.attention_function("sdpa", V, causal, True)
                assert time.perf_counter() - start < 0.25, (dtype, num_tokens)
    for rows, inputs, outputs in ((1576, 768, 768), (8192, 384, 384), (1024, 768, 3072), (1024, 768, 50257)):
        start = time.perf_counter()
        products._way(torch.zeros(rows, inputs), torch.zeros(outputs, inputs))
        assert time.perf_counter() - start < 0.25, (rows, inputs, outputs)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_measuring_under_the_callers_own_settings(cache, default):
    """In inference mode, and with another default type."""
    torch.set_default_dtype(default)
    try:
        with torch.inference_mode():
            V, X = torch.randn(1, 4, 65, 8, dtype=torch.float32), torch.randn(256, 64, dtype=torch.float32)
            attention.attention_function("sdpa", V, False, True)
            products.linear(X, torch.randn(128, 64, dtype=torch.float32))
            products.linear(X[:1], torch.randn(256, 64, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(calibration.choices()) == 3


def test_transforms_graphs_and_dispatch_modes_measure_nothing(cache):
    from torch._subclasses.fake_tensor import FakeTensorMode

    V, X = torch.randn(1, 2, 65, 8), torch.randn(64, 16)

    def both(V, X):
        attend = attention.attention_function("sdpa", V, False, True)
        assert attend is not attention.blocked_attention
        return products.linear(X, X)

    torch.func.vmap(lambda one: both(V, one))(X[None])
    torch.func.jvp(lambda one: both(V, one), (X,), (X,))
    torch.func.grad(lambda one: both(V, one).sum())(X)
    torch.compile(lambda one: both(V, one), backend="eager", fullgraph=False)(X)
    with FakeTensorMode(allow_non_fake_inputs=True):
        both(V, X)
    assert not calibration.choices()
