"""MaskCut against stored outputs of the published code: graphs, eigenvectors, sides, components and masks."""

import numpy as np
import pytest

from opencrate.analysis.segmentation import maskcut as module
from opencrate.analysis.segmentation.affinity import affinity
from opencrate.analysis.segmentation.boxes import mask_box
from opencrate.analysis.segmentation.maskcut import foreground, maskcut
from opencrate.analysis.segmentation.ncut import Cut, normalised_cut
from tests.golden import golden_meta, load_golden, sub_dict

from .common import present

CASES = [(file, tau) for file in present("maskcut") for tau in (0.15, 0.2)]
STAGES = 3


def golden_of(file, tau):
    """Features `(N, d)`, grid and the tensors of every stage as arrays."""
    tensors = load_golden("maskcut", file)
    features = tensors["feats"].numpy().T
    side = golden_meta("maskcut")["files"][f"{file}.safetensors"]["grid"]
    stages = [sub_dict(tensors, f"tau{tau}.stage{i}.") for i in range(STAGES)]
    return features, (side, side), [{name: value.numpy() for name, value in one.items()} for one in stages]


def painted(graph, grid, stages, stage):
    """The graph before a stage, by the stored masks."""
    taken = np.zeros(grid, dtype=bool)
    for earlier in stages[:stage]:
        taken |= earlier["mask"].astype(bool)
    return graph.without(taken.ravel())


@pytest.mark.parametrize("file, tau", CASES)
def test_graph_and_eigenvectors(file, tau):
    features, grid, stages = golden_of(file, tau)
    for i, golden in enumerate(stages):
        graph = painted(affinity(features, tau), grid, stages, i)
        if "affinity_bits" in golden:
            count = len(features)
            bits = np.unpackbits(golden["affinity_bits"].view(np.uint8))[: count**2].reshape(count, count)
            assert np.array_equal(graph.dense() > 0.5, bits.astype(bool))
        if "degree" in golden:
            assert np.allclose(graph.degrees(), golden["degree"], rtol=1e-6)
        cut = normalised_cut(graph)
        assert cut.eigenvalue == pytest.approx(golden["eigenvalues"][1], abs=1e-6) and cut.residual < 1e-12
        vector = golden["eigenvector"]
        assert np.abs(cut.vector * np.sign(cut.vector @ vector) - vector).max() < 1e-6 * np.abs(vector).max()


@pytest.mark.parametrize("file, tau", CASES)
def test_sides_and_components_of_either_sign(file, tau):
    """From the stored eigenvector, every step of a stage is the published one."""
    features, grid, stages = golden_of(file, tau)
    for i, golden in enumerate(stages):
        cut = normalised_cut(painted(affinity(features, tau), grid, stages, i))
        sign = np.sign(cut.vector @ golden["eigenvector"])
        cut = Cut(sign * cut.vector, cut.eigenvalue, cut.residual)
        found = foreground(cut, grid)
        raw = cut.vector > cut.vector.mean()
        if "corners_in_raw" in golden:
            assert raw.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() == golden["corners_in_raw"][0]
        if "bipartition_oriented" in golden:
            assert np.array_equal(found.side, golden["bipartition_oriented"].astype(bool))
        tied = golden_meta("maskcut")["files"][f"{file}.safetensors"]["robustness"][f"tau{tau}"][f"stage{i}"]
        if tied["ties_all_in_chosen_component"] and "component" in golden:
            assert found.side.flat[golden["seed"][0]] and found.component.flat[golden["seed"][0]]
            assert np.array_equal(found.component, golden["component"].astype(bool))
            left, top, right, bottom = mask_box(found.component)
            assert [top, left, bottom, right] == golden["box_ymin_xmin_ymax_xmax"].tolist()


@pytest.mark.parametrize("variant", ["mask", "flipped.mask"])
@pytest.mark.parametrize("file, tau", CASES)
def test_masks_bit_by_bit(file, tau, variant, monkeypatch):
    """With the published solver's signs, and with the opposite ones."""
    features, grid, stages = golden_of(file, tau)
    vectors = iter([one["eigenvector"] for one in stages])

    def signed(graph):
        cut = normalised_cut(graph)
        golden = next(vectors)
        aligned = np.sign(cut.vector @ golden) if variant == "mask" else -np.sign(cut.vector @ golden)
        return Cut(aligned * cut.vector, cut.eigenvalue, cut.residual)

    monkeypatch.setattr(module, "normalised_cut", signed)
    masks = {one.stage: one.mask for one in maskcut(features, grid, tau=tau, published=True)}
    for i, golden in enumerate(stages):
        ours = masks.get(i, np.zeros(grid, dtype=bool))
        assert np.array_equal(ours, golden[variant].astype(bool)), i


@pytest.mark.parametrize("file, tau", CASES)
def test_masks_with_our_sign(file, tau):
    """One of the two published results; the same where the published one depends on no sign."""
    features, grid, stages = golden_of(file, tau)
    masks = {one.stage: one.mask for one in maskcut(features, grid, tau=tau, published=True)}
    for i, golden in enumerate(stages):
        ours = masks.get(i, np.zeros(grid, dtype=bool))
        assert any(np.array_equal(ours, golden[name].astype(bool)) for name in ("mask", "flipped.mask"))
