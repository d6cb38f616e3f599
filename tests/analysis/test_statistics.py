"""Intervals cover what they promise, are deterministic, and say so where they know nothing."""

import math

import pytest
import torch
from scipy import stats

from opencrate.stats import intervals as statistics, words
from opencrate.stats.intervals import bootstrap_mean, bootstrap_statistic, paired_difference, seed_interval


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coverage(interval, count: int, trials: int = 1000) -> float:
    """How often the interval of `count` normal values holds their true mean, 3."""
    found = interval(3 + 2 * draws(count, trials))
    return float(((found.low <= 3) & (found.high >= 3)).double().mean())


def test_bootstrap_covers_the_mean():
    """95 % up to the known shortfall of the percentile bootstrap at few values; 4 standard errors are 0.02."""
    assert 0.92 <= coverage(bootstrap_mean, 100) <= 0.97
    assert 0.90 <= coverage(bootstrap_mean, 20) <= 0.95
    assert 0.86 <= coverage(lambda v: bootstrap_mean(v, level=0.9), 100) <= 0.93


def test_bootstrap_of_a_statistic():
    """Of the mean it is the interval of the mean; of the median it covers the median; a draw without value is left out."""
    values = draws(200)
    found, mean = bootstrap_statistic(lambda i: values[i].mean(), 200), bootstrap_mean(values)
    assert found.mean == mean.mean and found.count == 200
    for ours, known in ((found.low, mean.low), (found.high, mean.high)):
        assert float(ours) == pytest.approx(float(known), abs=0.02)
    median = bootstrap_statistic(lambda i: torch.stack([values[i].median(), values[i].max()]), 200, resamples=300)
    assert median.mean.shape == (2,) and median.low[0] < values.median() < median.high[0]
    again = bootstrap_statistic(lambda i: values[i].mean(), 200)
    assert torch.equal(found.low, again.low)
    some = bootstrap_statistic(lambda i: values[i].mean() if 0 in i else torch.tensor(math.nan), 200, resamples=200)
    assert not some.low.isnan() and not some.std.isnan()
    assert bootstrap_statistic(lambda i: values[i].mean(), 1).low.isnan()
    with pytest.raises(ValueError, match="resamples=5: must be an integer >= 100"):
        bootstrap_statistic(lambda i: values[i].mean(), 200, resamples=5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_seed_interval_covers_the_mean_at_few_seeds(count):
    assert 0.93 <= coverage(seed_interval, count) <= 0.97


def test_bootstrap_agrees_with_the_normal_interval_on_many_values():
    values = draws(400)
    found = bootstrap_mean(values)
    half = 1.96 * float(values.std()) / 20
    assert float(found.mean) == pytest.approx(float(values.mean()))
    assert float(found.high - found.low) == pytest.approx(2 * half, rel=0.1)
    assert float(found.std) == pytest.approx(float(values.std()))
    assert (found.count, found.level) == (400, 0.95)


def test_bootstrap_is_that_of_scipy():
    values = draws(30).exp()
    expected = stats.bootstrap((values.numpy(),), lambda v, axis: v.mean(axis), method="percentile", rng=1)
    found = bootstrap_mean(values, resamples=10_000)
    assert float(found.low) == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert float(found.high) == pytest.approx(expected.confidence_interval.high, abs=0.03)


def test_seed_interval_is_that_of_scipy():
    values = [0.91, 0.93, 0.90]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = seed_interval(values)
    assert float(found.low) == pytest.approx(expected.low) and float(found.high) == pytest.approx(expected.high)


def test_same_arguments_same_interval_and_columns_share_their_draws(monkeypatch):
    values = draws(11, 2, 3)
    first, again, other = bootstrap_mean(values), bootstrap_mean(values), bootstrap_mean(values, seed=1)
    assert torch.equal(first.low, again.low) and torch.equal(first.high, again.high)
    assert not torch.equal(first.low, other.low)
    assert first.mean.shape == first.low.shape == first.high.shape == first.std.shape == (2, 3)
    torch.testing.assert_close(bootstrap_mean(values[:, 1, 2]).low, first.low[1, 2])
    assert torch.equal(first[1].high, first.high[1]) and first[1].count == 11
    monkeypatch.setattr(statistics, "_DRAWS", 100)
    assert float((bootstrap_mean(values).low - first.low).abs().max()) < 0.1  # other draws, the same law


@pytest.mark.parametrize("interval", [bootstrap_mean, seed_interval])
def test_one_value_has_a_mean_and_no_interval(interval):
    found = interval([[1.0, 2.0]])
    assert found.mean.tolist() == [1, 2] and found.count == 1
    assert all(math.isnan(x) for part in (found.low, found.high, found.std) for x in part.tolist())


def test_constant_and_nan_columns():
    values = torch.stack([torch.full((5,), 2.0), torch.tensor([1.0, math.nan, 1, 1, 1])], dim=1)
    found = bootstrap_mean(values)
    assert (float(found.low[0]), float(found.high[0])) == (2, 2)
    assert math.isnan(found.mean[1]) and math.isnan(found.low[1])


def test_pairing_removes_what_both_share():
    shared, effect = 10 * draws(50), 0.1 * draws(50, seed=1) + 0.5
    found = paired_difference(shared + effect, shared)
    assert float(found.low) > 0.4 and float(found.high) < 0.6
    by_seeds = paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.4], seed_interval, level=0.9)
    assert float(by_seeds.mean) == pytest.approx(1.6 / 3) and by_seeds.level == 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), r"values: shape \(0,\)"),
        (lambda: seed_interval(torch.tensor(1.0)), r"values: shape \(\)"),
        (lambda: bootstrap_mean([1.0, 2.0], level=95), "level=95"),
        (lambda: bootstrap_mean([1.0, 2.0], resamples=10), "resamples=10"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), r"second: shape \(1,\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def of(mean: float, low: float, high: float) -> statistics.Interval:
    """An interval of one number."""
    return statistics.Interval(*(torch.tensor(value) for value in (mean, low, high, 1.0)), 5, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "sign"),
    [(-2, -1, "below"), (1, 2, "above"), (-1, 1, "undecided"), (0, 1, "undecided"), (math.nan, math.nan, "undecided")],
)
def test_the_sign_of_an_interval_is_the_side_of_zero_on_which_it_lies(low, high, sign):
    assert of((low + high) / 2, low, high).sign == sign


def test_the_signs_of_several_intervals_are_those_of_each():
    found = bootstrap_mean(torch.tensor([[-1.0, 1.0, -1.0], [-2.0, 2.0, 1.0]]).repeat(20, 1))
    assert found.signs == ["below", "above", "undecided"] == [found[index].sign for index in range(3)]
    assert bootstrap_mean([[3.0, -3.0]]).signs == ["undecided", "undecided"]


def test_an_interval_in_words():
    assert words.interval(of(1.234, 1.1, 1.35), 2) == "1.23 (1.10 to 1.35)"
    assert words.interval(of(1.234, -1.1, 1.35), 1, signed=True) == "+1.2 (-1.1 to +1.4)"
    assert words.interval(of(0.12345, 0.1, 0.2), 3, percent=True, significant=True) == "12.3 % (10 to 20)"
    assert words.interval(of(2.0, math.nan, math.nan), 0) == "2"


def test_a_span_in_words():
    assert words.span([3, 1, 2], 0) == "1 to 3" and words.span(torch.tensor([0.51, 0.52]), 1) == "0.5"
    assert words.span([-0.1, 0.2], 1, signed=True, percent=True) == "-10.0 to +20.0 %"
    assert words.number(math.nan, 2) == "–"


def test_lists_in_words():
    assert [words.listing(names) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
    assert words.layers([3]) == "layer 3" and words.layers([3, 5]) == "layers 3 and 5"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([2.0], "R is 2.0 at the only layer."),
        ([2.0, 1.0], "R falls from 2.0 to 1.0, at the only step from layer to layer."),
        ([1.0, 2.0], "R does not fall at the only step from layer to layer: it goes from 1.0 to 2.0."),
        ([3.0, 2.0, 1.0], "R falls from 3.0 to 1.0, at all 2 steps from layer to layer."),
    ],
)
def test_a_trend_in_words_counts_its_steps(values, text):
    assert words.describe_trend("R", torch.tensor(values)) == text
