"""A CRATE autoencoder measured as what it claims to be: a decoder whose layers undo the encoder's, last first.

Whole images go through (mask ratio 0). Decoder layer L + 1 − ℓ is meant to invert encoder layer ℓ; a decoder of
fewer layers has inverses of the last encoder layers only. States are those that the model records of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..evaluation.inputs import Batch, evaluating, masking, place, read_batches
from ..evaluation.reconstruction import masked_patch_errors, patch_noise
from ..modeling_crate_mae import CrateMAEForPreTraining
from ..objective import subspace_coding_rate
from ..positions import grid_places, places_argument
from ..registry import LEARNED
from .maths.inverse import Step, inverse_errors, relative_error
from .record.states import MAX_BATCH


@dataclass(frozen=True)
class AutoencoderMeasures:
    """Measures of n images, L encoder and L' decoder layers, M of which mirror one another; float64 on the CPU.

    Attributes:
        eps: ε of the rates.
        loss_on: what the model's loss is on, "masked" patches or "all".
        layers: numbers of the mirrored encoder layers, from 1: the last M = min(L, L') of L.
        noise_levels: lengths of the noise on tokens relative to theirs.
        values: by name:
            `layer_error` `(n, M)`: ‖g(f(Z)) − Z‖ / ‖Z‖ of mirrored encoder layer ℓ at its own input Z^ℓ.
            `layer_direction_error` `(n, M)`: the same of tokens scaled to length 1.
            `network_error`, `network_direction_error` `(n, M)`: of the mirrored layers up to ℓ together, at the state
            that enters the first of them (the embedding where all are mirrored).
            `encoder_before`, `encoder_half` `(n, L)`: R^c of Z^ℓ and of Z^{ℓ+½} under the encoder's U^ℓ, nats.
            `decoder_before`, `decoder_after` `(n, L')`: R^c of Y and of Y − MSSA(LN(Y)) under the decoder's U.
            the same four with `_unit`: of tokens scaled to length 1.
            `noise_error` `(n, levels)`: as `layer_direction_error`, mean over layers, with noise added to every
            layer's input: against that noisy input; `noise_left`: against the input without noise; `noise_put`: of
            the noisy input itself against the input without noise.
            `whole_image` `(n)`: mean squared error of plain autoencoding over the variance of the image's pixels.
            `masked`, `masked_mean_colour`, `masked_nearest` `(n)`: see `MaskedPatchErrors`; absent where the model
            masks nothing.
    """

    eps: float
    loss_on: str
    layers: tuple[int, ...]
    noise_levels: tuple[float, ...]
    values: dict[str, Tensor]

    @property
    def num_images(self) -> int:
        """n."""
        return len(self.values["whole_image"])


def require_layered(model: CrateMAEForPreTraining) -> None:
    """Refuse what is not a CRATE autoencoder whose layers can be set against one another, with a `ValueError`."""
    if not isinstance(model, CrateMAEForPreTraining):
        raise ValueError(f"{type(model).__name__}: is not a CRATE autoencoder, whose decoder layers stand for inverses")
    config = model.config
    if config.operator("compression").subspaces != LEARNED:
        raise ValueError(f"compression={config.compression!r}: has no subspaces U to take R^c against")


def measure_autoencoder(
    model: CrateMAEForPreTraining,
    batches: Iterable[Batch],
    eps: float = 0.5,
    noise_levels: Sequence[float] = (0.0,),
    num_images: int | None = None,
    seed: int = 0,
) -> AutoencoderMeasures:
    """Measure one model on images, a batch at a time.

    Args:
        model: see `require_layered`.
        batches: pixel values `(B, C, H, W)`, or mappings with `pixel_values`.
        eps: ε > 0 of the rates.
        noise_levels: length of the Gaussian noise put on a layer's tokens, relative to the tokens' (Frobenius norms,
            per image).
        num_images: use this many; `None` uses all.
        seed: of the noise on tokens and of the masks.

    Raises:
        ValueError: what `require_layered` refuses; no images, or fewer than requested; ε <= 0 or a level < 0.
    """
    require_layered(model)
    if not eps > 0 or min(noise_levels, default=-1) < 0:
        raise ValueError(f"eps={eps!r}, noise_levels={tuple(noise_levels)}: need eps > 0 and levels >= 0, at least one")
    generator = torch.Generator().manual_seed(seed)
    parts: list[dict[str, Tensor]] = []
    for number, fields in enumerate(read_batches(batches, num_images, MAX_BATCH)):
        pixels = place(fields["pixel_values"], model)
        with evaluating(model):
            with masking(model, 0):  # whole images, tokens in the order of the patches
                found = model(pixels, output_hidden_states=True, output_compressed_states=True)
            mirrored = _mirrored(model, pixels)
            inputs = found.hidden_states[: len(model.crate.layers)][-len(mirrored) :]
            values = _inverse(mirrored, inputs[0]) | _rates(model, found, eps)
            values |= _noise(mirrored, inputs, noise_levels, generator)
            values |= _pixels(model, pixels, found, seed + number)
        parts.append({name: value.double().cpu() for name, value in values.items()})
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    depth = len(model.crate.layers)
    layers = tuple(range(max(depth - len(model.decoder.layers), 0) + 1, depth + 1))
    return AutoencoderMeasures(eps, model.config.loss_on, layers, tuple(noise_levels), values)


def _mirrored(model: CrateMAEForPreTraining, pixels: Tensor) -> list[tuple[Step, Step]]:
    """Encoder layers and the decoder layers that mirror them, in the encoder's order, for whole images `pixels`."""
    grid = model.crate.embeddings.patch_embeddings.grid(pixels)
    encoder, decoder = (
        [partial(layer, **places_argument(grid_places(part.config, grid, pixels.device))) for layer in part.layers]
        for part in (model.crate, model.decoder)
    )
    return list(zip(reversed(encoder), decoder))[::-1]


def _inverse(mirrored: Sequence[tuple[Step, Step]], start: Tensor) -> dict[str, Tensor]:
    """Errors of layers and of those up to ℓ together, from the state `start`, raw and of directions, `(B, M)` each."""
    encoders, decoders = zip(*mirrored)
    values = {}
    for name, directions in (("", False), ("_direction", True)):
        errors = inverse_errors(encoders, decoders, start, directions)
        values[f"layer{name}_error"], values[f"network{name}_error"] = errors.per_layer.mT, errors.network.mT
    return values


def _rates(model: CrateMAEForPreTraining, found: Any, eps: float) -> dict[str, Tensor]:
    """R^c before and after every attention half-step, `(B, L)` each."""
    encoder = [layer.compress.operator.bases() for layer in model.crate.layers]
    decoder = [layer.expand.operator.bases() for layer in model.decoder.layers]
    states = {
        "encoder_before": (encoder, found.hidden_states[:-1]),
        "encoder_half": (encoder, found.compressed_states),
        "decoder_before": (decoder, found.decoder_compressed_states),
        "decoder_after": (decoder, found.decoder_hidden_states[1:]),
    }
    values = {}
    for name, (bases, tokens) in states.items():
        values[name] = torch.stack([subspace_coding_rate(Z, U, eps) for Z, U in zip(tokens, bases)], dim=1)
        unit = [subspace_coding_rate(normalize(Z, dim=-1), U, eps) for Z, U in zip(tokens, bases)]
        values[f"{name}_unit"] = torch.stack(unit, dim=1)
    return values


def _noise(
    mirrored: Sequence[tuple[Step, Step]], inputs: Sequence[Tensor], levels: Sequence[float], generator: torch.Generator
) -> dict[str, Tensor]:
    """What a layer and its inverse make of its input with noise, mean over layers, `(B, levels)` each."""
    columns: dict[str, list[Tensor]] = {"noise_error": [], "noise_left": [], "noise_put": []}
    for level in levels:
        per_layer = []
        for Z, (encode, decode) in zip(inputs, mirrored):
            noise = torch.randn(Z.shape, generator=generator, dtype=torch.float64).to(Z)
            length, own = (torch.linalg.vector_norm(part, dim=(-2, -1), keepdim=True) for part in (Z, noise))
            noisy = Z + level * length / own * noise
            back = decode(encode(noisy))
            compared = ((back, noisy), (back, Z), (noisy, Z))
            per_layer.append(torch.stack([relative_error(one, other, directions=True) for one, other in compared]))
        for column, values in zip(columns.values(), torch.stack(per_layer).mean(0)):
            column.append(values)
    return {name: torch.stack(column, dim=1) for name, column in columns.items()}


def _pixels(model: CrateMAEForPreTraining, pixels: Tensor, found: Any, seed: int) -> dict[str, Tensor]:
    """Errors on pixels: of plain autoencoding, and on masked patches at the model's own ratio beside the baselines."""
    target = model.patchify(pixels)
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    predicted = found.logits * (variance + 1e-6).sqrt() + mean if model.config.norm_pix_loss else found.logits
    spread = target.flatten(1).var(1, correction=0).clamp_min(torch.finfo(target.dtype).tiny)
    values = {"whole_image": (predicted - target).square().mean((1, 2)) / spread}
    num_patches = target.shape[1]
    if 0 < int(num_patches * (1 - model.config.mask_ratio)) < num_patches:
        errors = masked_patch_errors(model, pixels, patch_noise(len(pixels), num_patches, seed))
        values |= {"masked": errors.model, "masked_mean_colour": errors.mean_colour}
        values["masked_nearest"] = errors.nearest_visible
    return values
