"""Configurations of the vision families, from the tensors and what the caller stated."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration_crate import CrateConfig, pair
from .names import num_layers, shape_of, subspaces_of


def infer_config(
    state_dict: Mapping[str, Tensor], family: str, heads: int | None, image_size: Any, patch_size: Any
) -> dict[str, Any]:
    """Constructor arguments of ``CrateConfig`` from tensor shapes and what the caller stated."""
    width = shape_of(state_dict, "crate.embeddings.cls_token", family, 3)[-1]
    atoms = shape_of(state_dict, "crate.layers.0.sparsify.ista.dictionary", family, 2)[1]
    published = "CRATE tiny 6, small 12, base 12, large 16; emergence demo 6"
    subspaces = subspaces_of(state_dict, family, heads, published)
    patch, channels = _infer_patch(state_dict, family, patch_size)
    positions = shape_of(state_dict, "crate.embeddings.position_embeddings", family, 3)[1] - 1
    maps = "crate.layers.0.compress.mssa.output.weight" in state_dict
    identity = heads == 1 and subspaces["head_dim"] == width and not maps
    config = {
        "hidden_size": width,
        "num_hidden_layers": num_layers(state_dict),
        **subspaces,
        "patch_size": patch,
        "num_channels": channels,
        "image_size": infer_image_size(positions, patch, image_size),
        "attention_output": "none" if identity else "learned",  # the published code: identity when K = 1 and p = d
    }
    if family == "crate_mae":
        return {**config, "decoder_num_hidden_layers": num_layers(state_dict, "decoder")}
    config["num_labels"] = shape_of(state_dict, "classifier.weight", family, 2)[0]
    if family == "crate_alpha":
        return {**CrateConfig.SIZES["alpha-base"], **config, "dictionary_expansion": max(1, atoms // width)}
    return config


def _infer_patch(state_dict: Mapping[str, Tensor], family: str, patch_size: Any) -> tuple[Any, int]:
    dims = 2 if family == "crate" else 4
    shape = shape_of(state_dict, "crate.embeddings.patch_embeddings.projection.weight", family, dims)
    if dims == 4:
        found = shape[2] if shape[2] == shape[3] else [shape[2], shape[3]]
        if patch_size is not None and pair(patch_size) != pair(found):
            raise ValueError(f"patch_size={patch_size} contradicts the checkpoint's convolution, {found}")
        return found, shape[1]
    if patch_size is not None:
        area = pair(patch_size)[0] * pair(patch_size)[1]
        if area < 1 or shape[1] % area:
            raise ValueError(f"patch_size={patch_size} does not divide the checkpoint's {shape[1]} pixels per patch")
        return patch_size, shape[1] // area
    side = round((shape[1] / 3) ** 0.5)
    if 3 * side**2 != shape[1]:
        raise ValueError(
            f"patch_size cannot be inferred: {shape[1]} numbers per patch form no square patch of 3 channels; give "
            "patch_size (the channels follow from it)"
        )
    return side, 3


def infer_image_size(positions: int, patch: Any, image_size: Any) -> Any:
    """The native size of a checkpoint with so many positions of patches, as stated or of a square grid."""
    patch_height, patch_width = pair(patch)
    if image_size is not None:
        rows, columns = pair(image_size)[0] // patch_height, pair(image_size)[1] // patch_width
        if rows * columns != positions:
            raise ValueError(
                f"image_size={image_size} with patch_size={patch} gives {rows}x{columns} patches, but the checkpoint "
                f"has {positions} positions"
            )
        return image_size
    side = round(positions**0.5)
    if side**2 != positions:
        raise ValueError(
            f"image_size cannot be inferred: {positions} positions form no square grid; give image_size=(height, width)"
        )
    return side * patch_height if patch_height == patch_width else [side * patch_height, side * patch_width]
