"""What all CRATE models share: recorded states, initialisation, and the penalties in the loss."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ._graph import autocasts
from ._hf import RECORDED_BY_FORWARD, ModelOutput, create_bidirectional_mask, init
from ._suggest import suggest
from .blocks import Compression, orthogonality_loss
from .configuration_crate_blocks import CrateBlockConfig
from .positions import GridBias, TextBias
from .rate_gradient import RateGradient
from .representatives import CBSA
from .sparsification import ISTA, Synthesis
from .symmetric_attention import SymmetricMSSA
from .token_statistics import TSSA

if TYPE_CHECKING:
    from .certificate import Certificate

STATES = ("hidden_states", "compressed_states", "projected_states", "sparse_codes", "attentions")


@dataclass
class CrateStates:
    """The states of the layers, on request; the tuples hold one tensor per layer.

    Args:
        hidden_states: Z^l, ``(B, N, d)``; one more, the embedding, comes first.
        compressed_states: Z^{l+1/2}, ``(B, N, d)``.
        projected_states: U^T LN(Z^l), ``(B, K, N, p)``; empty where the compression operator does not record them.
        sparse_codes: code of the ISTA step, ``(B, N, m)``; equals Z^{l+1} for a complete dictionary. With
            ``sparsification="mlp"`` the MLP's hidden activations; empty with ``"none"``.
        attentions: softmax maps, ``(B, K, N, N)``; empty where the compression operator has no maps.
    """

    hidden_states: tuple[Tensor, ...] | None = None
    compressed_states: tuple[Tensor, ...] | None = None
    projected_states: tuple[Tensor, ...] | None = None
    sparse_codes: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def share_of_step(labels: Tensor | None, num_items: Tensor | int | None) -> Tensor | float:
    """The part of an optimizer step's loss that is a batch's: its labels over those of the step; 1 where it is alone.

    transformers' Trainer counts the labels other than -100 in all batches (and processes) of a step, gives their number
    to every forward as ``num_items_in_batch``, and adds up the losses. The shares of a step add up to 1.
    """
    if labels is None or num_items is None:
        return 1.0
    count = labels.ne(-100).sum()
    return count / (num_items.to(count.device) if isinstance(num_items, Tensor) else num_items)


def last_norm(config: CrateBlockConfig) -> nn.LayerNorm:
    """The norm after the last layer."""
    return nn.LayerNorm(config.hidden_size, eps=config.head_layer_norm_eps or config.layer_norm_eps)


def _dictionaries(module: ISTA | Synthesis) -> list[nn.Parameter]:
    return module.dictionaries() if isinstance(module, ISTA) else [module.dictionary]


class CratePreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation, penalties and the recording of states, shared by all CRATE models."""

    config: CrateBlockConfig
    base_model_prefix = "crate"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: dict[str, Any] = dict.fromkeys(STATES, RECORDED_BY_FORWARD)

    if TYPE_CHECKING:  # signatures that transformers' wrappers hide from type checkers

        def to(self, *args: Any, **kwargs: Any) -> Self: ...
        def cuda(self, device: int | torch.device | None = None) -> Self: ...
        def half(self) -> Self: ...
        def float(self) -> Self: ...
        def push_to_hub(self, repo_id: str, **kwargs: Any) -> str: ...

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if self.config.initializer == "normal" or isinstance(module, nn.LayerNorm):
            super()._init_weights(module)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = module.weight[0].numel() ** -0.5  # torch's default, which the published code keeps
            for parameter in module.parameters(recurse=False):
                init.uniform_(parameter, -bound, bound)
        if isinstance(module, ISTA):
            self._init_dictionaries(module)
        if isinstance(module, (ISTA, Compression, TSSA, CBSA, RateGradient, SymmetricMSSA)):
            module.reset_own()
        if isinstance(module, (TextBias, GridBias)):
            for parameter in module.parameters(recurse=False):
                init.zeros_(parameter)

    def _init_dictionaries(self, module: ISTA | Synthesis) -> None:
        for dictionary in _dictionaries(module):
            if self.config.initializer == "official":
                bound = (6 / dictionary.shape[1]) ** 0.5  # Kaiming uniform, fan-in = atoms
                init.uniform_(dictionary, -bound, bound)
            else:
                init.normal_(dictionary, std=self.config.initializer_range)

    def _class_loss(self, logits: Tensor, labels: Tensor | None, num_items: Tensor | int | None) -> Tensor | None:
        """The loss of ``config.problem_type``, with penalties; labels ``(B)``, or several ``(B, num_labels)``."""
        loss, kind = None, self.config.problem_type or ("regression" if self.config.num_labels == 1 else None)
        if labels is not None and (labels.is_floating_point() or kind == "regression"):
            loss = share_of_step(labels, num_items) * self.loss_function(labels, logits, self.config)  # a batch's mean
        elif labels is not None:
            loss = self.loss_function(labels, logits, self.config, num_items_in_batch=num_items)
        return self._with_penalties(loss, labels, num_items)

    def _with_penalties(
        self, loss: Tensor | None, labels: Tensor | None = None, num_items: Tensor | int | None = None
    ) -> Tensor | None:
        """The loss with the penalties that the configuration sets; of several batches in a step, their share."""
        subspace, dictionary = self.config.subspace_penalty, self.config.dictionary_penalty
        if not (subspace or dictionary):
            return loss
        if loss is not None:
            return loss + share_of_step(labels, num_items) * orthogonality_loss(self, subspace, dictionary)
        if num_items is not None:  # a Trainer that keeps the labels to itself
            warnings.warn(
                "subspace_penalty and dictionary_penalty are part of the model's own loss, and the Trainer's "
                "label_smoothing_factor or compute_loss_func takes its place: train without it, or add "
                "opencrate.blocks.orthogonality_loss(model, ...) to the loss",
                stacklevel=2,
            )
        return None

    def certificate(self, *inputs: Any, eps: Any = None, **kwargs: Any) -> "Certificate":
        """What each step of each layer does to the objective it is derived from, on each input of a batch.

        Arguments are those of ``forward``, and ``eps`` of R^c (by default ``config.compression_eps``); see
        :class:`~opencrate.certificate.Certificate`.
        """
        from .certificate import certificate

        return certificate(self, *inputs, eps=eps, **kwargs)

    def _as_handed_on(self, tokens: Tensor) -> Tensor:
        """The embedding in the type in which layers hand their tokens on, see ``config.residual_in_fp32``."""
        kind = tokens.device.type
        if self.config.residual_in_fp32 or not autocasts(kind):
            return tokens
        return tokens.to(torch.get_autocast_dtype(kind))

    def _padding_or_mask(self, tokens: Tensor, attention_mask: Tensor | None) -> Any:
        """What the compression operator takes where tokens see all others: a backend's mask, or the padding itself."""
        if attention_mask is None:
            return None
        if not self.config.operator("compression").padding_only:
            return create_bidirectional_mask(self.config, tokens, attention_mask)
        return self._padding(attention_mask, f"compression={self.config.compression!r}")

    def _padding(self, attention_mask: Tensor, reader: str) -> Tensor:
        if attention_mask.ndim != 2:
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)}: {reader} takes padding only, of shape "
                "(batch, tokens)"
            )
        return attention_mask

    def _padding_argument(self, attention_mask: Tensor | None) -> dict[str, Tensor]:
        """What a layer is given for its guard, which counts the tokens that are no padding."""
        guard = self.config.compression_guard
        if attention_mask is None or guard == "none":
            return {}
        return {"padding": self._padding(attention_mask, f"compression_guard={guard!r}")}

    def _check_outputs(self, kwargs: dict) -> None:
        known = {f"output_{key}" for key in self._can_record_outputs}
        for name in kwargs:
            if name.startswith("output_") and name not in known:
                raise ValueError(f"unknown output flag {name!r}; {suggest(name, known)}")

    def _states_of(self, outputs: ModelOutput) -> dict[str, Any]:
        return {key: outputs[key] for key in self._can_record_outputs if key in outputs}
