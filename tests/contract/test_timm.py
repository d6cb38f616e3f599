"""timm's Vision Transformers: the mapped model computes what timm's own forward does, in a few lines of torch here."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import PreTrainedConfig, ViTForImageClassification

from opencrate import analyze, load_official, open_saved
from opencrate.cli.main import main

WIDTH, LAYERS, HEADS, PATCH, SIZE, CLASSES = 32, 2, 2, 4, 16, 5


def tensors_of(scales: bool = False, class_position: bool = True, bias: bool = True) -> dict[str, torch.Tensor]:
    """A random state dict under the names of timm's VisionTransformer."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=random)

    positions = (SIZE // PATCH) ** 2 + class_position
    found = {"cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, positions, WIDTH)}
    found |= {"patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": draw(WIDTH)}
    maps = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (48, WIDTH), "mlp.fc2": (WIDTH, 48)}
    for layer in (f"blocks.{number}." for number in range(LAYERS)):
        for name in ("norm1", "norm2"):
            found |= {f"{layer}{name}.weight": 1 + draw(WIDTH), f"{layer}{name}.bias": draw(WIDTH)}
        for name, shape in maps.items():
            found[f"{layer}{name}.weight"] = draw(*shape)
            if bias or name != "attn.qkv":
                found[f"{layer}{name}.bias"] = draw(shape[0])
        if scales:
            found |= {f"{layer}ls1.gamma": draw(WIDTH), f"{layer}ls2.gamma": draw(WIDTH)}
    found |= {"norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}
    return found | {"head.weight": draw(CLASSES, WIDTH), "head.bias": draw(CLASSES)}


def timm_forward(w: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What timm computes: pre-norm layers, one matrix for queries, keys and values, the class token to the head."""

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    token = w["cls_token"].expand(len(x), -1, -1)
    if w["pos_embed"].shape[1] == x.shape[1]:
        x = torch.cat((token, x + w["pos_embed"]), dim=1)
    else:
        x = torch.cat((token, x), dim=1) + w["pos_embed"]
    for layer in (f"blocks.{number}." for number in range(LAYERS)):
        batch, count, _ = x.shape
        parts = linear(norm(x, f"{layer}norm1"), f"{layer}attn.qkv")
        q, k, v = parts.reshape(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v
        mixed = linear(mixed.transpose(1, 2).reshape(batch, count, WIDTH), f"{layer}attn.proj")
        x = x + mixed * w.get(f"{layer}ls1.gamma", torch.ones(1))
        inner = linear(F.gelu(linear(norm(x, f"{layer}norm2"), f"{layer}mlp.fc1")), f"{layer}mlp.fc2")
        x = x + inner * w.get(f"{layer}ls2.gamma", torch.ones(1))
    return linear(norm(x, "norm")[:, 0], "head")


FORMS = {"plain": {}, "scales": {"scales": True}, "no position of the class token": {"class_position": False}}
FORMS |= {"no bias": {"bias": False}, "all of it": {"scales": True, "class_position": False, "bias": False}}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_mapped_model_computes_what_timm_does(form):
    tensors, images = tensors_of(**form), torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    model = load_official(tensors, "timm_vit", num_attention_heads=HEADS)
    assert isinstance(model, ViTForImageClassification) and not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, timm_forward(tensors, images), rtol=1e-4, atol=1e-5)


REFUSED = {
    "reg_token": "register tokens",
    "dist_token": "a distillation token",
    "norm_pre.weight": "a norm before the layers",
    "fc_norm.weight": "the mean of the tokens",
    "attn_pool.latent": "pooling by attention",
    "blocks.0.attn.q_norm.weight": "norms of queries and keys",
    "blocks.0.attn.rel_pos.bias": "unexpected keys",
}


@pytest.mark.parametrize(("name", "reason"), REFUSED.items(), ids=REFUSED.keys())
def test_what_transformers_does_not_compute_is_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        load_official({**tensors_of(), name: torch.zeros(4)}, "timm_vit", num_attention_heads=HEADS)


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "norm.weight", "blocks.1.mlp.fc2.bias"])
def test_a_missing_tensor_is_named(name):
    tensors = tensors_of()
    del tensors[name]
    with pytest.raises(ValueError, match=r"cls_token|pos_embed|missing"):
        load_official(tensors, "timm_vit", num_attention_heads=HEADS)


def test_heads_that_nobody_knows_are_asked_for():
    with pytest.raises(ValueError, match="num_attention_heads"):
        load_official(tensors_of(), "timm_vit")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as timm leaves it on the Hub: config.json and model.safetensors."""
    place = tmp_path / "vit"
    place.mkdir()
    save_file(tensors_of(), place / "model.safetensors")
    settings = {"input_size": [3, SIZE, SIZE], "crop_pct": 0.8, "interpolation": "bicubic", "crop_mode": "center"}
    settings |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "num_classes": CLASSES}
    config = {"architecture": "test_vit", "num_classes": CLASSES, "global_pool": "token", "pretrained_cfg": settings}
    config["label_names"] = list("abcde")
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_a_folder_opens_with_its_own_processor_and_classes(folder):
    saved = open_saved(folder, ("classifier",))
    assert saved.label_names == list("abcde") and saved.model.config.num_attention_heads == HEADS
    assert saved.processor.size["shortest_edge"] == 20 and saved.processor.crop_size["height"] == SIZE
    assert list(saved.processor.image_mean) == [0.5, 0.4, 0.3]
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(saved.model(images).logits, timm_forward(tensors_of(), images), rtol=1e-4, atol=1e-5)
    assert analyze(saved.model, images).measures.values["rate"].shape == (2, LAYERS)


def test_the_commands_read_a_folder(folder, tmp_path, capsys):
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.effect_noise((24, 24), 60).convert("RGB").save(images / f"{number}.png")
    assert main(["predict", str(folder), str(images / "0.png"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["predictions"][0]["label"] in "abcde"
    assert main(["audit", str(folder), "--data", str(images), "--output", str(tmp_path / "out")]) == 0
    assert main(["convert", str(folder), str(tmp_path / "made"), "--family", "timm_vit"]) == 0
    again, first = open_saved(tmp_path / "made", ("classifier",)), open_saved(folder)
    assert again.processor.crop_size == first.processor.crop_size and again.label_names == first.label_names
    assert all(torch.equal(value, first.model.state_dict()[name]) for name, value in again.model.state_dict().items())


def test_a_name_of_the_hub_opens_too(folder, monkeypatch):
    """By two files of the repository; nothing is downloaded here."""
    config = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", classmethod(lambda cls, name, **_: (config, {})))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file: str(folder / file))
    saved = open_saved("hf://timm/test_vit.r160_in1k", ("classifier",))
    assert saved.label_names == list("abcde") and saved.processor.crop_size["height"] == SIZE
    assert torch.equal(saved.model.classifier.weight.cpu(), tensors_of()["head.weight"])


def test_fine_tuning_says_to_convert_it_first(folder, capsys):
    assert main(["finetune", str(folder), "digits", "--output", str(folder.parent / "out")]) == 2
    assert "family 'timm_vit'" in capsys.readouterr().err


def test_an_architecture_that_cannot_be_read_is_refused_in_a_line(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "global_pool": "avg"}))
    with pytest.raises(ValueError, match="timm's that cannot be read: global_pool='avg'"):
        open_saved(folder)
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {"mean": "x", "interpolation": "no"}}))
    with pytest.raises(ValueError, match="timm's that cannot be read"):
        open_saved(folder)
