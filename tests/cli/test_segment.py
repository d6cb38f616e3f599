"""`opencrate segment`: what it writes, and what it refuses."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from opencrate.data.segmentation.run_lengths import decode

from ..analysis.foreign_models import tiny
from ..analysis.masks.models import blind_crate, picture, processor


@pytest.fixture(scope="module")
def crate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crate") / "crate"
    blind_crate().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two pictures of one name in two folders, and one of another size."""
    for number, (name, size) in enumerate({"a/cat.png": (48, 64), "b/cat.png": (48, 64), "dog.png": (64, 48)}.items()):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(*size)[0].rotate(180 * number).save(file)
    return tmp_path / "photos"


def test_every_picture_has_its_files(opencrate, crate, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = opencrate("segment", crate, photos, "--size", 48, "--tau", 0.99, "--maps")
    assert result.code == 0, result.err
    folder = tmp_path / "segmentations" / "crate"
    found = json.loads((folder / "masks.json").read_text())
    assert result.out.splitlines()[0] == f"{len(found['annotations'])} masks in 3 pictures"
    assert [image["name"] for image in found["images"]] == ["cat", "cat-2", "dog"]
    for image in found["images"]:
        index = Image.open(folder / "masks" / f"{image['name']}.png")
        assert index.mode == "P" and index.size == (image["width"], image["height"])
        assert Image.open(folder / "overlays" / f"{image['name']}.png").size == index.size
        maps = np.load(folder / "maps" / f"{image['name']}.npy", allow_pickle=False)
        assert maps.shape == (2, *image["patches"]) and (maps.sum((1, 2)) <= 1 + 1e-5).all()
        own = [one for one in found["annotations"] if one["image_id"] == image["id"]]
        first = decode(own[0]["segmentation"])
        assert np.array_equal(np.asarray(index) == 1, first)
        assert own[0]["area"] == first.sum() and own[0]["label"] == "object 1"
        assert set(np.unique(np.asarray(index))) <= {0, *range(1, len(own) + 1)}
    assert not list(folder.rglob(".*.png.*")), "temporary files are left"


def test_masks_json_is_a_coco_data_set_and_its_results(opencrate, crate, photos, tmp_path):
    coco = pytest.importorskip("faster_coco_eval")
    assert opencrate("segment", crate, photos, "--size", 48, "--output", tmp_path / "out").code == 0
    path = tmp_path / "out" / "masks.json"
    truth = coco.COCO(str(path))
    results = truth.loadRes(json.loads(path.read_text())["annotations"])
    assert len(results.anns) == len(truth.anns) > 0
    assert {type(one["score"]) for one in results.anns.values()} == {float}


def test_the_page_opens_offline_and_shows_every_picture(opencrate, crate, photos, tmp_path):
    opencrate("segment", crate, photos, "--size", 48, "--output", tmp_path / "out", "--rows", 2, "--maps")
    page = (tmp_path / "out" / "segmentation.html").read_text()
    assert page.count('<article class="card">') == 2 and "1 more are in the files" in page
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))
    assert page.count('alt="head 2"') == 2 and "layer 2" in page


def test_two_runs_write_the_same_bytes(opencrate, crate, photos, tmp_path):
    for name in ("one", "two"):
        assert opencrate("segment", crate, photos, "--size", 48, "--output", tmp_path / name).code == 0
    for file in sorted((tmp_path / "one").rglob("*.png")):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    found = [json.loads((tmp_path / name / "masks.json").read_text())["annotations"] for name in ("one", "two")]
    assert found[0] == found[1]


def test_attention_shows_the_mean_and_writes_every_head(opencrate, crate, photos, tmp_path):
    out = tmp_path / "out"
    words = ("segment", crate, photos / "dog.png", "--size", 48, "--output", out, "--method", "attention")
    assert opencrate(*words).code == 0
    labels = [one["label"] for one in json.loads((out / "masks.json").read_text())["annotations"]]
    assert labels == ["head 1", "head 2", "mean of heads"]
    assert set(np.unique(np.asarray(Image.open(out / "masks" / "dog.png")))) == {0, 1}


def test_heads_are_a_grid(opencrate, crate, photos, tmp_path):
    result = opencrate("segment", crate, photos, "--size", 48, "--output", tmp_path / "out", "--heads", "--layer", 1)
    assert result.code == 0 and "2 heads across 3 pictures" in result.out
    image = Image.open(tmp_path / "out" / "heads.png")
    assert image.width > image.height > 100
    page = (tmp_path / "out" / "segmentation.html").read_text()
    assert "layer 1, attention of the class token" in page
    assert not (tmp_path / "out" / "masks.json").exists()


def test_bad_pictures_are_named_or_counted(opencrate, crate, photos, tmp_path):
    (photos / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 2)).save(photos / "low.png")
    words = ("segment", crate, photos, "--size", 48, "--output", tmp_path / "out")
    refused = opencrate(*words)
    assert refused.code == 2 and "bad.png: not a readable image" in refused.err
    result = opencrate(*words, "--skip-bad", "--overwrite")
    assert result.code == 0 and "skipped 2 of 5 images" in result.err and "low.png: image of 2x64" in result.err
    assert "in 3 pictures" in result.out
    only = opencrate("segment", crate, photos / "bad.png", "--skip-bad", "--output", tmp_path / "none")
    assert only.code == 2 and "none of the 1 images can be segmented" in only.err


def test_nothing_is_replaced_unasked(opencrate, crate, photos, tmp_path):
    words = ("segment", crate, photos / "dog.png", "--size", 48, "--output", tmp_path / "out")
    assert opencrate(*words).code == 0
    refused = opencrate(*words)
    assert refused.code == 2 and "segmentation.html: exists" in refused.err and "--overwrite" in refused.err
    assert opencrate(*words, "--overwrite").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "masks.json").write_text("[]")
    other = opencrate(*words[:-1], tmp_path / "mine", "--overwrite")
    assert other.code == 2 and (tmp_path / "mine" / "masks.json").read_text() == "[]"


def test_what_is_replaced_leaves_nothing_behind(opencrate, crate, photos, tmp_path):
    """Fewer pictures, no maps, heads in place of masks: only what the last command wrote, and what is not ours."""
    out = tmp_path / "out"

    def files():
        found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name[0] != "."}
        return found - {"segmentation.html", "masks.json"}

    words = ("segment", "--size", 48, "--output", out, "--overwrite", crate)
    assert opencrate(*words, photos, "--maps").code == 0 and len(files()) == 9
    (out / "overlays" / "mine.png").write_bytes(b"")
    assert opencrate(*words, photos / "dog.png").code == 0
    assert files() == {"overlays/dog.png", "masks/dog.png", "overlays/mine.png"}
    document = json.loads((out / "masks.json").read_text())
    (tmp_path / "kept.png").write_bytes(b"")
    document["images"].append({"name": "../../kept"})
    (out / "masks.json").write_text(json.dumps(document))
    assert opencrate(*words, photos / "dog.png", "--heads").code == 0
    assert files() == {"heads.png", "overlays/mine.png"} and not (out / "masks.json").exists()
    assert (tmp_path / "kept.png").exists()
    (out / "masks.json").write_text("[]")
    assert opencrate(*words, photos / "dog.png").code == 0
    assert files() == {"overlays/dog.png", "masks/dog.png", "overlays/mine.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layer", "7"), "--layer 7: the model has layers 1 to 2"),
        (("--layer", "first"), "'first' is not a whole number"),
        (("--size", "2"), "--size 2: must be a whole number of pixels"),
        (("--size", "2000"), "give a smaller --size N\n"),
        (("--size", "400", "--stride", "1"), "give a smaller --size N or a larger --stride N"),
        (("--stride", "3"), "--stride 3: must divide the patch"),
        (("--tau", "2"), "argument --tau: '2' is not a number of at least 0 and below 1"),
        (("--tau", "x"), "'x' is not a number"),
        (("--rule", "top:0.6"), "--rule 'top:0.6': must be entries:SHARE or mass:SHARE"),
        (("--head", "9", "--method", "attention"), "--head 9: the layer has heads 1 to 2"),
        (("--method", "cut"), "unknown --method 'cut'"),
        (("--threshold", "1.5", "--published"), "--threshold 1.5"),
    ],
)
def test_options_outside_their_range(opencrate, crate, photos, tmp_path, words, message):
    result = opencrate("segment", crate, photos, "--output", tmp_path / "out", *words)
    assert result.code == 2 and message in result.err, result.err
    assert not (tmp_path / "out").exists()


def test_models_that_read_texts(opencrate, gpt2, photos, tmp_path):
    tiny("bert").save_pretrained(tmp_path / "bert")
    for model in (gpt2, tmp_path / "bert"):
        result = opencrate("segment", model, photos, "--output", tmp_path / "out")
        assert result.code == 2 and len(result.err.splitlines()) == 1, result.err


def test_transformers_models(opencrate, dino, photos, tmp_path):
    result = opencrate("segment", dino, photos, "--size", 32, "--stride", 2, "--output", tmp_path / "out")
    assert result.code == 0, result.err


def test_features_of_a_vision_model(opencrate, folder_run, dino, loose_images, tmp_path):
    words = ("features", folder_run, "--num-features", 3, "--num-images", 20, "--output", tmp_path / "own")
    result = opencrate(*words)
    assert result.code == 0 and "features drawn at random" in result.out, result.err
    found = json.loads((tmp_path / "own" / "features.json").read_text())["models"][0]
    assert found["labelled"] and all(one["selects"] for one in found["features"])
    result = opencrate("features", dino, "--data", loose_images, "--num-features", 3, "--output", tmp_path / "dino")
    assert result.code == 0 and "have no classes" in result.out, result.err
    for more, message in (
        (("--text", "stdlib"), "a model that reads images; give --data IMAGES"),
        (("--prompt", "The"), "--steer and --prompt are for texts"),
        (("--num-images", "2"), "need at least 4 images"),
    ):
        result = opencrate("features", folder_run, "--output", tmp_path / "bad", *more)
        assert result.code == 2 and message in result.err, result.err
    tiny("bert").save_pretrained(tmp_path / "bert")
    result = opencrate("features", tmp_path / "bert", "--data", loose_images)
    assert result.code == 2 and "a model without a head, not a causal language model" in result.err, result.err
