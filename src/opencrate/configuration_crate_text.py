"""CrateTextConfig and the named sizes of the published language models."""

from typing import Annotated, Literal

from ._hf import CACHE_NAMES
from ._values import Share, Within
from .configuration_crate_blocks import CrateBlockConfig, sized

TokenId = Annotated[int, Within(0, 10**7)]


class CrateTextConfig(CrateBlockConfig):
    r"""Configuration of the CRATE text models; the defaults are CRATE-GPT base (complete dictionary). [2311.13110]

    The settings of the blocks are those of :class:`~opencrate.configuration_crate_blocks.CrateBlockConfig`.

    Args:
        vocab_size: tokens in the vocabulary (published: GPT-2's 50,257, padded to 50,304).
        max_position_embeddings: the context, in tokens; positions are learned.
        type_vocab_size: kinds of segments (``token_type_ids``); 0 is none, BERT has 2.
        is_causal: ``True``: a token attends to itself and what is before it; ``False``: to all. ``None`` is what the
            class needs: causal for ``CrateForCausalLM``, else not.
        final_norm: LN after the last layer (published: overcomplete yes, complete no).
        pool: token that represents a sequence in the classification heads: ``first``, ``last`` or ``mean`` over the
            attended ones; ``None`` is ``last`` for a causal model, else ``first``.
        classifier_dropout: in training, share of the pooled vector set to zero; ``None`` is ``dropout``.
        context_overflow: what ``generate`` does beyond the context: ``error``, before anything is generated, or
            ``crop``: keep the last ``max_position_embeddings`` tokens and compute them anew for each further token,
            as the published sampling does (their positions shift, so no cache can be used).
        tie_word_embeddings: the unembedding is the token table (published).
        use_cache: keep U^T LN(Z) of earlier tokens when generating.
        bos_token_id: id of the first token, if the tokenizer has one.
        eos_token_id: id, or ids, after which generation stops.
        pad_token_id: id of padding.
    """

    model_type = "crate_text"
    KIND = "a CRATE text model"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012 (transformers' convention)

    vocab_size: Annotated[int, Within(1, 10**7)] = 50304
    max_position_embeddings: Annotated[int, Within(1, 2**20)] = 1024
    type_vocab_size: Annotated[int, Within(0, 10**6)] = 0
    is_causal: bool | None = None
    final_norm: bool = False
    pool: Literal["first", "last", "mean"] | None = None
    classifier_dropout: Share | None = None
    context_overflow: Literal["error", "crop"] = "error"
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_blocks()
        self._check_text()

    def _check_text(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(self, name)
            fits = ids is None or max(ids if isinstance(ids, list) else [ids], default=0) < self.vocab_size
            self._require(fits, name, f"below vocab_size {self.vocab_size}")
        causal = self.operator("compression").causal or not self.is_causal
        self._require(causal, "compression", "one that keeps tokens from seeing later ones, in a causal model")
        gamma = self.compression_kappa is not None
        self._require(not (gamma and self.is_causal), "compression_kappa", "null in a causal model, where N varies")
        guard = self.compression_guard != "none"
        self._require(not (guard and self.is_causal), "compression_guard", "'none' in a causal model")


_GPT2 = {"vocab_size": 50304, "max_position_embeddings": 1024, "is_causal": True}
_WIDE = {"ista_num_steps": 2, "dictionary_expansion": 4, "final_norm": True, **_GPT2}
_OVERCOMPLETE = {"dictionary_decode": "tied", **_WIDE}
# The residual stream ends in a norm, as in the vision models' head; the published text leaves it open.
_ALPHA = {"attention_output_bias": False, "ista_residual": True, "dictionary_decode": "untied", **_WIDE}
_BERT = {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
_BERT |= {"is_causal": False, "final_norm": True, "pad_token_id": 0}
# Characters or bytes on a laptop.
_CHARACTERS = {"vocab_size": 256, "is_causal": True, "final_norm": True, "initializer": "normal"}

CrateTextConfig.SIZES = {
    # CRATE-GPT and CRATE-LM with a complete dictionary: 60.70 M parameters at vocabulary 50,304 and context 1,024
    # (59.91 M without positions; the paper's 60 M), 27.07 M for one layer.
    "gpt-base": sized(768, 12, 12, **_GPT2),
    "gpt-1-layer": sized(512, 1, 4, **_GPT2),
    # CRATE-LM, overcomplete, tied, no residual (81.93 M; 27.86 M for one layer). Medium, large and xl are stated in the
    # published code only, without counts.
    "lm-1-layer": sized(512, 1, 4, **_OVERCOMPLETE),
    "lm-base": sized(768, 12, 12, **_OVERCOMPLETE),
    "lm-medium": sized(1024, 24, 16, **_OVERCOMPLETE),
    "lm-large": sized(1280, 36, 20, **_OVERCOMPLETE),
    "lm-xl": sized(1600, 48, 25, **_OVERCOMPLETE),
    # CRATE-alpha, untied, residual [2405.20299]: small is the paper's 57 M; base, 12 layers of 768, has 110 M where the
    # paper says 120 M (unresolved). The heads of small are not stated: p = 64.
    "alpha-small": sized(512, 12, 8, **_ALPHA),
    "alpha-base": sized(768, 12, 12, **_ALPHA),
    # CRATE-BERT: 12 layers of 768, complete, with BERT's vocabulary, context and segments (45 M; the layout of the
    # published models is unresolved).
    "bert-base": sized(768, 12, 12, **_BERT),
    # Laptop sizes (ours): characters or bytes, contexts of 256 and 64.
    "laptop": sized(256, 6, 4, max_position_embeddings=256, **_CHARACTERS),
    "tiny": sized(64, 2, 2, max_position_embeddings=64, **_CHARACTERS),
}
