"""Tiny random models of every known type, and inputs for them."""

import torch
import transformers

_SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
_IMAGE = _SIZES | {"image_size": 8, "patch_size": 4, "num_channels": 1}
_TEXT = _SIZES | {"vocab_size": 40, "intermediate_size": 24, "max_position_embeddings": 32}
_DECODER = _TEXT | {"num_key_value_heads": 2}
_DINO = _IMAGE | {"mlp_ratio": 2, "layerscale_value": 0.5}
_CLIP = _IMAGE | {"intermediate_size": 24}
_DECODED = {
    "mask_ratio": 0.0,
    "decoder_hidden_size": 8,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
}

MODELS = {
    "vit": ("ViT", _CLIP),
    "deit": ("DeiT", _CLIP),
    "vit_msn": ("ViTMSN", _CLIP),
    "vit_mae": ("ViTMAE", _CLIP | _DECODED),
    "ijepa": ("IJepa", _CLIP),
    "dinov2": ("Dinov2", _DINO),
    "dinov2_with_registers": ("Dinov2WithRegisters", _DINO | {"num_register_tokens": 2, "use_swiglu_ffn": True}),
    "dinov3_vit": ("DINOv3ViT", _CLIP | {"num_register_tokens": 2}),
    "clip_vision_model": ("CLIPVision", _CLIP),
    "siglip_vision_model": ("SiglipVision", _CLIP),
    "bert": ("Bert", _TEXT),
    "roberta": ("Roberta", _TEXT),
    "electra": ("Electra", _TEXT | {"embedding_size": 8}),
    "distilbert": ("DistilBert", {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, "vocab_size": 40}),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 40, "n_positions": 32}),
    "llama": ("Llama", _DECODER),
    "mistral": ("Mistral", _DECODER),
    "qwen2": ("Qwen2", _DECODER),
    "qwen3": ("Qwen3", _DECODER | {"head_dim": 8}),
}
IMAGE_TYPES = [name for name, (_, sizes) in MODELS.items() if "patch_size" in sizes]


def tiny(model_type: str, seed: int = 0, head: str = "Model") -> transformers.PreTrainedModel:
    """A random model with weights far enough from 0 that every branch counts."""
    name, sizes = MODELS[model_type]
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(seed)
    model = getattr(transformers, name + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs_for(model_type: str, count: int = 3, padded: bool = False) -> dict[str, torch.Tensor]:
    """Images of 8x8 pixels, or texts of 6 tokens (the last ones padding, where asked for)."""
    generator = torch.Generator().manual_seed(1)
    if model_type in IMAGE_TYPES:
        images = {"pixel_values": torch.randn(count, 1, 8, 8, generator=generator)}
        return images | ({"noise": torch.arange(4.0).expand(count, 4)} if model_type == "vit_mae" else {})
    ids = torch.randint(3, 40, (count, 6), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[1:, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}
