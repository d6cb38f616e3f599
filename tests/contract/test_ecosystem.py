"""The models where users meet them: Auto classes, pipelines, the Trainer, the Hub, remote code."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import opencrate
from opencrate import CrateBackbone, CrateConfig, CrateForImageClassification, CrateImageProcessor, CrateModel

from .common import ALL_STATES, config_of, images_of, model_of


def processor() -> CrateImageProcessor:
    return CrateImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def picture(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def saved(tmp_path):
    model = model_of("alpha")
    model.save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_auto_classes(saved):
    model, folder = saved
    assert isinstance(AutoConfig.from_pretrained(folder), CrateConfig)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), CrateImageProcessor)
    images = images_of(model)
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(loaded, CrateForImageClassification)
    assert torch.equal(loaded(images).logits, model(images).logits)
    encoder = AutoModel.from_pretrained(folder)
    assert isinstance(encoder, CrateModel)
    assert torch.equal(encoder(images).last_hidden_state, model.crate(images).last_hidden_state)
    assert isinstance(AutoModelForImageClassification.from_config(model.config), CrateForImageClassification)
    opencrate.register_auto_classes()  # again: changes nothing


def test_backbone(saved):
    """``AutoBackbone.from_pretrained`` asks the Hub even for a local folder (upstream), so the class loads it here."""
    model, folder = saved
    assert isinstance(AutoBackbone.from_config(config_of()), CrateBackbone)
    backbone = CrateBackbone.from_pretrained(folder, out_features=["stem", "stage2"])
    images = images_of(model, size=(8, 12))
    outputs = backbone(images)
    states = model(images, **ALL_STATES).hidden_states
    assert [tuple(m.shape) for m in outputs.feature_maps] == [(2, 16, 2, 3)] * 2 and backbone.channels == [16, 16]
    for feature_map, state in zip(outputs.feature_maps, (states[0], states[2]), strict=True):
        assert torch.equal(feature_map.flatten(2).transpose(1, 2), state[:, 1:])
    assert outputs.hidden_states is None and outputs.attentions is None
    asked = backbone(images, output_hidden_states=True, output_attentions=True)
    assert len(asked.hidden_states) == 3 and len(asked.attentions) == 2
    assert len(backbone(images, return_dict=False)[0]) == 2
    assert len(CrateBackbone(config_of())(images).feature_maps) == 1  # the last stage unless asked


def test_image_processor(tmp_path):
    ours = processor()
    ours.save_pretrained(tmp_path)
    loaded = CrateImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == ours.to_dict()
    batch = loaded([picture(), picture(16, 40)], return_tensors="pt")["pixel_values"]
    assert batch.shape == (2, 3, 8, 8)
    assert torch.equal(batch, ours([picture(), picture(16, 40)], return_tensors="pt")["pixel_values"])
    small = picture().resize((12, 8), Image.Resampling.BILINEAR).crop((2, 0, 10, 8))  # shortest side 8, centre
    mean, std = torch.tensor(ours.image_mean)[:, None, None], torch.tensor(ours.image_std)[:, None, None]
    expected = (torch.from_numpy(np.asarray(small) / 255).float().permute(2, 0, 1) - mean) / std
    torch.testing.assert_close(batch[0], expected, rtol=1e-5, atol=1e-5)
    default = CrateImageProcessor()(picture(300, 280), return_tensors="pt")["pixel_values"]
    assert default.shape == (1, 3, 224, 224)


def test_pipeline(saved):
    model, folder = saved
    classify = pipeline("image-classification", model=str(folder))
    answers = classify([picture(), picture(16, 40)], top_k=3)
    with torch.no_grad():
        expected = model(processor()(picture(), return_tensors="pt")["pixel_values"]).logits.softmax(-1)[0]
    assert [answer["score"] for answer in answers[0]] == pytest.approx(
        sorted(expected.tolist(), reverse=True), abs=1e-5
    )
    assert {answer["label"] for answer in answers[0]} == {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_two_trainer_steps(tmp_path):
    model = model_of(dictionary_penalty=1e-3)
    images = images_of(model, batch=8)
    data = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_steps=2
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    assert np.isfinite(trainer.train().training_loss)
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    prediction = trainer.predict(data)
    assert prediction.predictions.shape == (8, 3) and np.isfinite(prediction.metrics["test_loss"])
    again = CrateForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    with torch.no_grad():
        np.testing.assert_allclose(again(images).logits, prediction.predictions, rtol=1e-5, atol=1e-6)


def test_push_to_hub_sends_weights_configuration_and_code(monkeypatch):
    """Nothing leaves: the two calls that would are replaced."""
    sent = {}

    def create_repo(self, repo_id, **kwargs):
        return type("Repo", (), {"repo_id": repo_id})()

    def create_commit(self, repo_id, operations, **kwargs):
        sent["repo"], sent["files"] = repo_id, sorted(operation.path_in_repo for operation in operations)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it looks for a model card
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    model_of().push_to_hub("someone/crate")
    assert sent["repo"] == "someone/crate"
    code = {"modeling_crate.py", "configuration_crate.py", "blocks.py", "operators.py", "registry.py", "_hf.py"}
    assert {"model.safetensors", "config.json"} | code <= set(sent["files"])


REMOTE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opencrate":
            raise ModuleNotFoundError("No module named 'opencrate'", name=name)

sys.meta_path.insert(0, Blocked())
import json, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
folder, images = sys.argv[1], torch.load(sys.argv[2])
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
outputs = model(images, output_projected_states=True)
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
certified = AutoModelForImageClassification.from_pretrained(sys.argv[3], trust_remote_code=True).certificate(images)
print(json.dumps({
    "logits": outputs.logits.tolist(),
    "states": len(outputs.projected_states),
    "crop": dict(processor.crop_size),
    "scores": len(classify(Image.new("LA", (9, 12)))),
    "here": "opencrate" in sys.modules,
    "certified": certified.guaranteed and bool(certified.holds.all()),
}))
"""


def test_a_saved_folder_loads_where_the_package_is_not_installed(saved, tmp_path):
    model, folder = saved
    images = images_of(model)
    torch.save(images, tmp_path / "images.pt")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    model_of("gradient").save_pretrained(tmp_path / "certified")
    command = [sys.executable, "-c", REMOTE, str(folder), str(tmp_path / "images.pt"), str(tmp_path / "certified")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["here"] and found["states"] == 2 and found["certified"]
    assert found["scores"] == 3 and found["crop"] == {"height": 8, "width": 8}
    torch.testing.assert_close(torch.tensor(found["logits"]), model(images).logits.detach())
