"""The order of the draws, and what mixes with what: keyed by seed, epoch and place in the global batch."""

import numpy as np
import pytest
import torch

from opencrate.data.draws import Draw, DrawSampler, SampleGenerators, draw_mix
from opencrate.data.options import Augmentation

BOTH = Augmentation(mixup=0.8, cutmix=1.0)


def draws_of(epoch=0, length=50, seed=3, batch=8, augmentation=BOTH):
    sampler = DrawSampler(length, seed, batch, augmentation)
    sampler.set_epoch(epoch)
    assert len(sampler) == length
    return list(sampler)


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=0.5), BOTH])
def test_order_is_the_permutation_of_seed_and_epoch(augmentation):
    for seed, epoch in ((0, 0), (3, 0), (3, 7)):
        expected = torch.randperm(50, generator=torch.Generator().manual_seed(seed * 2**20 + epoch)).tolist()
        draws = draws_of(epoch, seed=seed, augmentation=augmentation)
        assert [draw.index for draw in draws] == expected
        assert {(draw.seed, draw.epoch) for draw in draws} == {(seed, epoch)}


def test_same_key_same_draws_and_another_key_others():
    assert draws_of(2) == draws_of(2)
    mixes = [{draw.mix for draw in draws_of(epoch, seed=seed)} for seed, epoch in ((3, 2), (3, 3), (4, 2))]
    assert not (mixes[0] & mixes[1]) and not (mixes[0] & mixes[2])


def test_without_mixing_a_draw_is_an_index():
    assert draws_of(augmentation=Augmentation())[0] == Draw(draws_of()[0].index, 0, 3)


def test_one_mix_per_global_batch_and_partners_inside_it():
    draws = draws_of(length=53)
    for start in range(0, 53, 8):  # the last batch has 5
        batch = draws[start : start + 8]
        assert len({draw.mix for draw in batch}) == 1
        assert sorted(draw.partner for draw in batch) == sorted(draw.index for draw in batch)
    assert len({draws[start].mix for start in range(0, 53, 8)}) == 7
    assert sum(draw.partner != draw.index for draw in draws) > 30


def test_both_kinds_come_equally_often():
    draws = draws_of(length=4000, batch=2)
    share = np.mean([draw.mix.kind == "mixup" for draw in draws])
    assert abs(share - 0.5) < 0.05


def test_mixup_lambda_is_beta():
    generator = np.random.default_rng(0)
    lams = np.array([draw_mix({"mixup": 0.8}, generator).lam for _ in range(4000)])
    assert abs(lams.mean() - 0.5) < 0.02
    assert abs(lams.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01
    assert draw_mix({"mixup": 0.8}, generator).box is None


def test_cutmix_box_lies_inside_and_lambda_is_its_area():
    generator = np.random.default_rng(0)
    mixes = [draw_mix({"cutmix": 1.0}, generator) for _ in range(2000)]
    for mix in mixes:
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= 1 and 0 <= left <= right <= 1
        assert mix.lam == pytest.approx(1 - (bottom - top) * (right - left), abs=1e-12)
    uncut = [mix for mix in mixes if min(mix.box) > 0 and max(mix.box) < 1]
    assert 100 < len(uncut) < 1900
    assert all(m.box[2] - m.box[0] == pytest.approx(m.box[3] - m.box[1]) for m in uncut)
    assert np.mean([mix.lam for mix in mixes]) > 0.55  # boxes that are cut off leave more of the image


def test_sample_generators_depend_on_their_key_alone():
    one, other = SampleGenerators(), SampleGenerators()
    expected = {key: one(*key).random(5).tolist() for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))}
    assert len({tuple(numbers) for numbers in expected.values()}) == 4
    for key in reversed(expected):
        other(*key).integers(7, dtype=np.int32)  # leaves half a word behind
        assert other(*key).random(5).tolist() == expected[key]


def test_sample_generators_do_not_overlap():
    generators = SampleGenerators()
    first = {round(x, 12) for index in range(20) for x in generators(0, 0, index).random(500)}
    assert len(first) == 20 * 500


def test_numbers_are_the_same_on_every_machine():
    np.testing.assert_array_equal(
        SampleGenerators()(1, 2, 3).random(2),
        np.random.Generator(np.random.Philox(np.random.SeedSequence((2, 1, 2)), counter=[0, 3, 0, 0])).random(2),
    )


def test_global_batch_size_is_checked():
    with pytest.raises(ValueError, match="global_batch_size must be at least 1; got 0"):
        DrawSampler(5, 0, 0)
