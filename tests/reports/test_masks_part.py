"""The part of a model's page with MaskCut and attention at a higher resolution."""

import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor, open_saved
from opencrate.reports import masks
from opencrate.reports.masks import masks_part


def saved(folder, **changes):
    """A small CRATE with its image processor."""
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CrateConfig(**shape, num_labels=2, **changes)
    CrateForImageClassification(config).save_pretrained(folder)
    CrateImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return open_saved(folder)


@pytest.mark.parametrize("kind", ["mssa", "tssa"])
def test_a_model_with_maps_and_one_without(tmp_path, kind):
    batches = [{"pixel_values": torch.rand(2, 3, 16, 16)}, {"pixel_values": torch.rand(2, 3, 16, 16)}]
    part = masks_part(saved(tmp_path, compression=kind), "small", batches)
    assert part is not None and len(part.figures) == 1
    looks = kind == "mssa"
    assert any("small has no attention maps" in one for one in part.sentences) == (not looks)
    assert len(part.figures[0].folded) == int(looks)
    assert len(part.figures[0].figure.axes) == 3 * (3 if looks else 2)


def test_what_cannot_be_segmented_says_why(tmp_path, monkeypatch):
    def fail(*_):
        raise ArithmeticError("no eigenvector")

    monkeypatch.setattr(masks, "maskcut", fail)
    part = masks_part(saved(tmp_path), "small", [{"pixel_values": torch.rand(1, 3, 16, 16)}])
    assert part is not None and part.folded and part.sentences == ("No masks of small: no eigenvector.",)
