"""Bad input from the command line: exit code 2, one line with the field, the value and what is allowed, no folder."""

import pytest

from opencrate.cli.main import main

from ...recipes.folders import write_classes

SMALL = (
    *("model.size=null", "data.image_size=16", "data.num_channels=3", "data.image_mean=[0.5,0.5,0.5]"),
    *("data.image_std=[0.5,0.5,0.5]", "views.local_size=8", "training.max_steps=1"),
    *("training.per_device_train_batch_size=8", "ssl.head_hidden=8", "ssl.bottleneck=4"),
)
CRATE = "model.config={hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 4, patch_size: 4, pool: mean}"
VIT = "{hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 24, patch_size: 4}"
BAD = {
    "fewer images than a batch": (
        ["training.per_device_train_batch_size=25"],
        "24 training images are fewer than a global batch of 25 (training.per_device_train_batch_size=25)",
    ),
    "crop below a patch": (["views.local_size=2"], "views.local_size=2: must be a multiple of the patch (4x4 pixels)"),
    "crop of no whole patches": (
        ["views.local_size=6"],
        "views.local_size=6: must be a multiple of the patch (4x4 pixels) and at most data.image_size (16x16), for ex",
    ),
    "one view": (
        ["views.global_views=1", "views.local_views=0"],
        "views.local_views=0: must be at least 1 where views.global_views is 1",
    ),
    "no prototypes": (["ssl.prototypes=0"], "'ssl.prototypes' must be a whole number of at least 2"),
    "no images": (["data.path=RUN"], "no images, and no parquet, IDX or CIFAR .bin files"),
    "no folder": (["data.path=nowhere"], "no such folder or file; give 'digits', a folder of images, a .parquet file"),
    "another architecture": (
        ["model.type=vit", f"model.config={VIT}", "model.init_from=RUN"],
        "holds a crate model, but model.type is vit; set model.type=crate",
    ),
    "another width": (
        ["model.config.hidden_size=16", "model.init_from=RUN"],
        "crate.embeddings.cls_token has shape (1, 1, 24), the model's is (1, 1, 16)",
    ),
    "another objective": (
        ["digits-simdino", "ssl.prototypes=65536", "--resume", "--output", "RUN"],
        "ssl.objective was 'dino', now 'simdino'",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of 24 training images, and a run on it."""
    place = tmp_path_factory.mktemp("bad")
    folder = write_classes(place / "images", 10)
    command = ["train", "digits-dino", *SMALL, CRATE, f"data.path={folder}", "ssl.prototypes=16"]
    assert main([*command, "--output", str(place / "run"), "--no-report"]) == 0
    return place, command


@pytest.mark.parametrize("name", BAD)
def test_one_line_names_what_is_wrong(place, name, tmp_path, monkeypatch, capsys):
    (folder, command), (words, message) = place, BAD[name]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    if words[0].startswith("digits-"):  # another recipe
        command, words = ["train", words[0], *command[2:]], words[1:]
    assert main([*command, *(word.replace("RUN", str(folder / "run")) for word in words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = (line for line in lines if not line.startswith("opencrate: k-NN and linear probe are left out"))
    assert error.startswith("opencrate: error: ") and message in error, error
    assert not list(tmp_path.iterdir())
