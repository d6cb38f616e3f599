"""Features: scores against scipy and scikit-learn, directions against the model's own forward, and the page."""

import json
import re

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from opencrate.analysis.features.codes import code_modules, codes_kind, directions, feature_set_to, promoted_logits
from opencrate.analysis.features.find import Context, difference, find_features
from opencrate.analysis.features.scores import TokenTables, detection, pearson, spearman, strong_positions
from opencrate.analysis.features.steer import steer
from opencrate.analysis.record.states import record
from opencrate.data.text.documents import Documents, digest
from opencrate.evaluation.generation import Sampling
from opencrate.reports.features import describe, features_report, score_table, shaded
from opencrate.reports.html import write

from .language_models import STORY, causal, masked

DICTIONARIES = {
    "complete": {},
    "tied": {"dictionary_expansion": 2, "dictionary_decode": "tied", "ista_num_steps": 2, "ista_start": "zero"},
    "untied": {
        "dictionary_expansion": 2,
        "dictionary_decode": "untied",
        "ista_num_steps": 2,
        "ista_start": "zero",
        "ista_residual": True,
    },
}


def model_of(kind):
    return causal("gpt2" if kind == "gpt2" else "crate", dictionary=DICTIONARIES.get(kind), steps=15)


@pytest.fixture(scope="module")
def crate():
    return model_of("untied")


@pytest.fixture(scope="module")
def gpt2():
    return model_of("gpt2")


def documents(text=STORY):
    return Documents("story", lambda: iter([text]), lambda: digest(text))


def find(language, **options):
    return find_features(language, documents(), **{"num_features": 12, "block_size": 32, **options})


# --- scores


def test_tables_are_shrunk_means():
    tokens, previous = np.array([1, 1, 1, 2]), np.array([5, 5, 6, -1])
    values = np.array([[2.0], [4.0], [0.0], [10.0]])
    table = TokenTables(tokens, previous, values)
    base = 4.0
    one = (6 + base) / 4
    expected = [(6 + one) / 3, (0 + one) / 2, one, ((10 + base) / 2 + 10) / 2, base]
    found = table.predict(np.array([1, 1, 1, 2, 3]), np.array([5, 6, 7, -1, 1]))
    assert found[:, 0] == pytest.approx(expected)


def test_scores_are_those_of_scipy_and_scikit_learn():
    generator = np.random.default_rng(0)
    held_out = generator.random((200, 3)).round(1)
    predicted = (held_out + generator.random((200, 3))).round(1)
    strong = strong_positions(generator.random((100, 3)) * 0.9, held_out)
    for column in range(3):
        pair = predicted[:, column], held_out[:, column]
        assert pearson(predicted, held_out)[column] == pytest.approx(stats.pearsonr(*pair).statistic)
        assert spearman(predicted, held_out)[column] == pytest.approx(stats.spearmanr(*pair).statistic)
        expected = roc_auc_score(strong[:, column], predicted[:, column])
        assert detection(predicted, strong)[column] == pytest.approx(expected)


def test_scores_that_cannot_be_had_are_nan():
    flat = np.zeros((20, 1))
    assert np.isnan(pearson(flat, np.arange(20.0)[:, None]))
    assert np.isnan(detection(flat, np.arange(20)[:, None] < 4)) and detection(flat, np.arange(20)[:, None] < 5) == 0.5


# --- directions and steering


@pytest.mark.parametrize("kind", ["complete", "tied", "untied", "gpt2"])
def test_a_feature_writes_its_direction(kind):
    language = model_of(kind)
    ids = torch.tensor([language.tokenizer(STORY)["input_ids"][:20]])

    def states(*feature):
        if not feature:
            return next(record(language.model, [ids])).layers
        with feature_set_to(language.model, *feature):
            return next(record(language.model, [ids])).layers

    for layer in (1, 2):
        plain = states()[layer - 1]
        assert directions(language.model, layer).shape == (32, plain.codes.shape[-1])
        changed = states(layer, 3, 1.5)[layer - 1]
        step = (1.5 - plain.codes[..., 3:4]) * directions(language.model, layer)[:, 3]
        torch.testing.assert_close(changed.after - plain.after, step, atol=1e-5, rtol=1e-4)
    assert torch.equal(states()[1].after, plain.after), "the hook is gone"


def test_promoted_tokens_of_a_planted_direction(gpt2):
    head = gpt2.model.get_output_embeddings().weight.detach()
    assert int(promoted_logits(gpt2.model, head[7:8].mT * 100).argmax()) == int(
        (head @ (head[7] - head[7].mean())).argmax()
    )
    v, norm = torch.randn(32, 1), gpt2.model.transformer.ln_f
    with torch.no_grad():
        norm.weight.copy_(torch.rand(32) + 0.5)
    expected = (norm(v.mT) - norm.bias).mT * (v.var(correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(promoted_logits(gpt2.model, v), head @ expected.detach(), atol=1e-4, rtol=1e-4)


def test_steering_changes_what_comes_next(crate):
    ids = torch.tensor([crate.tokenizer(STORY)["input_ids"][:30]])
    weak, strong = (steer(crate, 2, 5, value, ids, "The", Sampling(10, seed=1)) for value in (0.5, 50.0))
    assert 0 <= weak.kl < strong.kl and strong.raised[0][1] > 0 > strong.lowered[0][1]
    assert weak.before == strong.before
    with feature_set_to(crate.model, 2, 5, 50.0), torch.no_grad():
        changed = crate.model(input_ids=ids).logits.log_softmax(-1)
    with torch.no_grad():
        plain = crate.model(input_ids=ids).logits.log_softmax(-1)
    assert strong.kl == pytest.approx(float((changed.exp() * (changed - plain)).sum(-1).mean()), rel=1e-4)


def test_features_that_are_not_there(crate):
    for arguments, reason in (((3, 0), "layers 1 to 2"), ((1, 64), "features 0 to 63")):
        with pytest.raises(ValueError, match=reason), feature_set_to(crate.model, *arguments, 1.0):
            pass
    assert len(code_modules(crate.model)) == 2 and codes_kind(crate.model) == "sparse codes"


# --- the whole


def test_features_are_drawn_at_random_and_described(crate):
    report, again = find(crate), find(crate)
    assert [one.index for one in report.features] == [one.index for one in again.features]
    assert [one.index for one in report.features] != [one.index for one in find(crate, seed=1).features]
    assert [one.layer for one in report.features] == [1] * 12 + [2] * 12
    assert report.widths == {1: 64, 2: 64} and report.tokens % 64 == 0 and report.block_size == 32
    for one in report.features:
        assert one.firing_rate == pytest.approx(report.firing_rates[one.layer][one.index])
        assert len(one.promoted) == 8 and one.promoted[0][1] >= one.promoted[-1][1]
        for context in one.contexts:
            assert context.values[context.peak] == max(context.values) > 0
    alive = [one for one in report.features if one.contexts]
    assert alive and report.silent == sum(one.maximum <= 0 for one in report.features)
    assert report.interval("auc").mean > report.interval("auc_control").mean + 0.1


def test_top_contexts_come_from_the_explaining_half_only(crate):
    text = STORY[: len(STORY) // 2] + "1" * (len(STORY) // 2)
    report = find_features(crate, documents(text), num_features=20, block_size=32)
    shown = "".join("".join(context.tokens) for one in report.features for context in one.contexts)
    assert shown and "1111111111" not in shown


def test_masked_models_and_other_types(gpt2):
    found = find(masked(), layers=[2])
    assert {one.layer for one in found.features} == {2} and found.kind == "MLP neurons"
    assert all(one.promoted == () for one in found.features)
    assert all(len(one.promoted) == 8 for one in find(gpt2, layers=[1]).features)


def test_too_little_text(crate):
    with pytest.raises(ValueError, match="need at least 128 for two halves"):
        find_features(crate, documents(STORY[:100]), block_size=32)


def test_page_is_whole_and_safe(crate, gpt2, tmp_path):
    reports = [find(crate, name="mine"), find(gpt2, name="<script>other")]
    ids = torch.tensor([crate.tokenizer(STORY)["input_ids"][:30]])
    steered = [steer(crate, 1, 2, 3.0, ids, "The", Sampling(5))]
    page = write(features_report(reports, steered, [("command", "opencrate features & more")]), tmp_path).read_text()
    assert page.count("<article") == 12 * 4 + 1 and "&lt;script&gt;other" in page and page.count("<script>") == 1
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "http://" not in page and "https://" not in page
    found = json.loads((tmp_path / "features.json").read_text())
    assert len(found["models"][0]["features"]) == 24 and found["steered"][0]["value"] == 3.0
    sentences = describe(reports, steered)
    gap = difference(*reports, "pearson")
    assert gap.low <= gap.mean <= gap.high and f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" in sentences[2]
    assert len(score_table(reports).frame) == 6 and "nats (KL divergence" in sentences[3]


def test_shades_follow_the_activation():
    html = str(shaded(Context(("a", "<", "\n", "b"), (0.0, 1.0, 3.0, -1.0), 2), 3.0))
    assert html == 'a<b class="s3">&lt;</b><b class="s9 peak">↵</b>b'
