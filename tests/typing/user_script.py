"""A user's script, which must pass pyright in basic mode: `make lint`. It is read by the checker, not run."""

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import opencrate
from opencrate import (
    BlockHooks,
    CrateBackbone,
    CrateConfig,
    CrateForCausalLM,
    CrateForImageClassification,
    CrateForMaskedLM,
    CrateForMultipleChoice,
    CrateForQuestionAnswering,
    CrateForSequenceClassification,
    CrateForTokenClassification,
    CrateImageProcessor,
    CrateMAEConfig,
    CrateMAEForPreTraining,
    CrateMAEModel,
    CrateModel,
    CrateTextConfig,
    CrateTextModel,
    LayerAnalysis,
    analyze,
    audit,
    coding_rate,
    diagnose,
    ista,
    list_sizes,
    load_official,
    mssa,
    rate_reduction,
    sparse_rate_reduction,
    sparsity,
    subspace_coding_rate,
    to_official,
)

# Measures and operators
Z, U, D = torch.randn(2, 16, 32), torch.randn(4, 32, 8), torch.randn(32, 32)
assert_type(coding_rate(Z, eps=0.5), Tensor)
assert_type(coding_rate(Z, 0.5).sum(-1), Tensor)
assert_type(subspace_coding_rate(Z, U, eps=0.5, per_subspace=True), Tensor)
assert_type(rate_reduction(Z, U, eps=0.5), Tensor)
assert_type(sparse_rate_reduction(Z, U, eps=0.5, lam=0.1), Tensor)
assert_type(sparsity(Z), Tensor)
compressed: Tensor = mssa(Z, U)
codes: Tensor = ista(Z, D, eta=0.1, lam=0.1)

# Images
config = CrateConfig.from_size("tiny", num_labels=10)
assert_type(config, CrateConfig)
config = CrateConfig(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=(4, 4))
config = CrateConfig(
    num_labels=2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, attn_implementation="eager"
)
width: int = config.hidden_size
classes: int = config.num_labels
name, index = config.id2label[0].upper(), config.label2id["cat"] + 1
steps: float = config.ista_step_size + config.ista_lambda
names: list[str] = [*list_sizes()["crate"], *CrateTextConfig.SIZES]
model = CrateForImageClassification(config).eval()
assert_type(model, CrateForImageClassification)
model = CrateForImageClassification.from_pretrained("folder")
assert_type(model.config, CrateConfig)
assert_type(model.crate, CrateModel)
with torch.no_grad():
    out = model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1]), output_compressed_states=True)
print(out.loss.item(), out.logits.argmax(-1), [state.shape for state in out.compressed_states])
for layer, z_half in zip(model.crate.layers, out.compressed_states):
    print(subspace_coding_rate(z_half, layer.compress.mssa.bases(), eps=0.5).mean())
    print(layer.sparsify.ista.dictionary.shape)
typed = model.forward(torch.randn(2, 3, 32, 32), output_hidden_states=True)
if typed.logits is not None and typed.hidden_states is not None:
    print(typed.logits.softmax(-1), typed.hidden_states[0].mean())
model.save_pretrained("folder")
model = model.to("cpu").to(torch.device("cpu"), torch.float32).half().float().cuda()
print(model.classifier)
model.gradient_checkpointing_enable()
model.push_to_hub("owner/name", private=True)
torch.optim.AdamW(model.parameters(), lr=1e-3).step()
processor = CrateImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
processor = CrateImageProcessor.from_pretrained("folder")
processor.push_to_hub("owner/name")
encoder = CrateModel.from_pretrained("folder")
backbone = CrateBackbone(CrateConfig(out_features=["stage1"]))
features: list[Tensor] = [*backbone(torch.randn(1, 3, 224, 224)).feature_maps]
if (state := encoder.forward(torch.randn(2, 3, 32, 32)).last_hidden_state) is not None:
    print(state[:, 0])
print(processor(images=[], return_tensors="pt"), encoder.layers[0].sparsify, backbone.channels)

trainer = Trainer(model=model, args=TrainingArguments(output_dir="run"), processing_class=processor)
trainer.train()

# The autoencoder
autoencoder = CrateMAEForPreTraining(CrateMAEConfig.from_size("base", mask_ratio=0.75))
ratio: float = autoencoder.config.mask_ratio
print(autoencoder(torch.randn(2, 3, 224, 224)).loss, CrateMAEModel(autoencoder.config))

# Text
text_config = CrateTextConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3)
causal = CrateForCausalLM(text_config)
ids = causal.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5)
vocabulary: int = causal.config.vocab_size + causal.to("cpu").config.num_labels
heads = (
    CrateForMaskedLM(text_config),
    CrateForSequenceClassification(text_config),
    CrateForTokenClassification(text_config),
    CrateForQuestionAnswering(text_config),
    CrateForMultipleChoice(text_config),
    CrateTextModel(text_config),
)
print([head.num_parameters() for head in heads])

# Published checkpoints
published = load_official("crate-demo.pth", "crate", num_attention_heads=6, position_interpolation="scale")
weights: dict[str, Tensor] = to_official(published)
published.save_pretrained("published")

# Analysis
batches = [{"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 0, 1])}]
report = analyze(model, batches, eps=0.5, measures="basic")
assert_type(report, LayerAnalysis)
report.save(Path("report"))
rows = LayerAnalysis.load("report").to_rows()
print(report.measures, report.to_frame(), rows[0])
print(audit(model, batches, num_images=4).to_rows(), diagnose(model, batches).healthy())
hooks = BlockHooks(layers="blocks", compressed="norm2", value="qkv[3/3]", key="qkv[2/3]", codes="down")
vit = ViTForImageClassification(ViTConfig())
other = analyze(vit, batches, eps=0.5, hooks=hooks)
print([(finding.check, finding.verdict) for finding in diagnose(vit, batches).findings], other.measures.num_layers)
print(opencrate.__version__, opencrate.register_auto_classes())
