"""Tokenizers: made from the training text, or read from files; always a transformers fast tokenizer.

A tokenizer made here for causal models has the one special token `<|endoftext|>` (beginning, end and padding), and
`<|unk|>` where characters can be unknown; one for masked models has BERT's `[PAD] [UNK] [CLS] [SEP] [MASK]`.
"""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  # made when asked for
    GPT2TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ..._files import HUB_PREFIX, folder_of, path_problem, read_bytes, read_json, shown
from ..._pretrained import read_tokenizer, reason
from .options import TRAINED

Objective = Literal["causal", "masked"]

END, UNKNOWN = "<|endoftext|>", "<|unk|>"
_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ALPHABET = 1000  # most frequent characters that wordpiece knows
_ROOM = 128  # model vocabularies are rounded up for speed; GPT-2's by 47
_SAVED = ("tokenizer.json", "tokenizer_config.json")


def train_tokenizer(
    kind: str, texts: Iterable[str], objective: Objective = "causal", vocab_size: int = 8192
) -> PreTrainedTokenizerFast:
    """A tokenizer made from text; the same text gives the same tokenizer.

    Args:
        kind: "characters" (one token per Unicode character of the text, in code point order), "bytes" (one per UTF-8
            byte), "bpe" (GPT-2's byte-level byte pair encoding) or "wordpiece" (BERT's, lower case).
        texts: the training documents, to be read more than once; not read for "bytes".
        objective: "causal" or "masked", which decides the special tokens.
        vocab_size: of "bpe" and "wordpiece", special tokens included.

    Raises:
        ValueError: an unknown kind, or a vocabulary too small for the kind's alphabet.
    """
    if kind not in TRAINED:
        raise ValueError(f"tokenizer '{kind}': one made from text is {', '.join(TRAINED)}")
    masked = objective == "masked"
    special, unknown = (list(_BERT.values()), _BERT["unk_token"]) if masked else ([END], UNKNOWN)
    with_unknown = special if masked else [*special, unknown]
    if kind == "characters":
        tokenizer = _character_tokenizer(texts, with_unknown, unknown)
    elif kind == "wordpiece":
        tokenizer = _wordpiece_tokenizer(texts, with_unknown, unknown, vocab_size)
    else:
        tokenizer = _byte_tokenizer(texts if kind == "bpe" else (), special, vocab_size if kind == "bpe" else None)
    return wrapped(tokenizer, objective)


def wrapped(tokenizer: Tokenizer, objective: Objective) -> PreTrainedTokenizerFast:
    """A `tokenizers` tokenizer with the special tokens of this module, as transformers reads and saves it."""
    if objective == "masked":
        ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
        special, inputs = _BERT, ["input_ids", "token_type_ids", "attention_mask"]
    else:
        special, inputs = {"bos_token": END, "eos_token": END, "pad_token": END}, ["input_ids", "attention_mask"]
        if tokenizer.token_to_id(UNKNOWN) is not None:
            special["unk_token"] = UNKNOWN
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, model_input_names=inputs, clean_up_tokenization_spaces=False
    )


def _character_tokenizer(texts: Iterable[str], special: list[str], unknown: str) -> Tokenizer:
    names = [*special, *sorted(set(chain.from_iterable(texts)))]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=unknown, cache_capacity=0))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _byte_tokenizer(texts: Iterable[str], special: list[str], vocab_size: int | None) -> Tokenizer:
    """Byte pairs over the 256 bytes; without a size the bytes alone."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(special)
    if vocab_size is not None and vocab_size < least:
        raise ValueError(
            f"text.vocab_size={vocab_size}: bpe needs at least {least}, the bytes and {len(special)} special tokens; "
            "use tokenizer=bytes or characters for fewer"
        )
    vocab = {name: number for number, name in enumerate([*special, *alphabet])}
    bytes_alone = models.BPE(vocab=vocab, merges=[], cache_capacity=0)
    tokenizer = Tokenizer(bytes_alone if vocab_size is None else models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=vocab_size is not None)
    tokenizer.decoder = decoders.ByteLevel()
    if vocab_size is None:
        tokenizer.add_special_tokens(special)
        return tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_pieces_of(texts), trainer)
    return tokenizer


def _wordpiece_tokenizer(texts: Iterable[str], special: list[str], unknown: str, vocab_size: int) -> Tokenizer:
    """WordPieces, with the alphabet's `##` forms in a fixed order: the trainer's own would change from run to run."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = Counter(character for text in texts for character in normalizer.normalize_str(text))
    frequent = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(frequent[:_ALPHABET])
    first = [*special, *alphabet, *(f"##{character}" for character in alphabet)]
    if len(first) > vocab_size:
        raise ValueError(
            f"text.vocab_size={vocab_size}: the text has {len(first)} special tokens and characters, at the beginning "
            "of a word and inside; wordpiece needs at least as many"
        )
    made = Tokenizer(models.WordPiece(unk_token=unknown))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=first, limit_alphabet=_ALPHABET, show_progress=False
    )
    made.train_from_iterator(_pieces_of(texts), trainer)
    tokenizer = Tokenizer(models.WordPiece(vocab=made.get_vocab(), unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _pieces_of(texts: Iterable[str]) -> Iterator[str]:
    return (piece for text in texts for piece in pieces(text))


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from files.

    Args:
        source: a folder with `tokenizer.json` (a run directory, anything written by save_pretrained), with GPT-2's
            `vocab.json` and `merges.txt`, or with BERT's `vocab.txt` (lower case if no entry has a capital A to Z); a
            `tokenizer.json` file; `opencrate/name` of an installed model; or `hf://owner/name`, which is downloaded.

    Raises:
        ValueError: no such folder, or no tokenizer in it; a slow tokenizer.
    """
    text = str(source)
    where = text if text.startswith(HUB_PREFIX) else folder_of(text)
    try:
        tokenizer = _read(where)
    except Exception as error:  # damaged files make the libraries trip in many ways
        raise ValueError(f"{shown(source)}: cannot be loaded as a tokenizer: {reason(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{source}: a tokenizer without tokenizer.json; convert it by `convert_slow_tokenizer` first")
    return tokenizer


def _read(where: str | Path) -> PreTrainedTokenizerBase:
    if isinstance(where, str):
        return read_tokenizer(AutoTokenizer, where)
    if path_problem(where):
        raise ValueError(f"no such folder or file; give a folder, or one of {', '.join(TRAINED)}")
    if not where.is_dir():
        read_json(where)
        return PreTrainedTokenizerFast(tokenizer_file=str(where))
    if any((where / name).is_file() for name in _SAVED):
        return read_tokenizer(AutoTokenizer, where)
    if (where / "vocab.json").is_file() and (where / "merges.txt").is_file():
        return read_tokenizer(GPT2TokenizerFast, where)
    if (where / "vocab.txt").is_file():
        words = read_bytes(where / "vocab.txt", "a vocabulary").decode("utf-8").splitlines()
        lower = not any(character in string.ascii_uppercase for word in words if word[:1] != "[" for character in word)
        return read_tokenizer(BertTokenizerFast, where, do_lower_case=lower)
    raise ValueError("holds no tokenizer.json, no vocab.json with merges.txt and no vocab.txt")


def check_objective(tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
    """Refuse a tokenizer without the tokens that an objective needs: a mask token, one between documents."""
    if objective == "masked" and tokenizer.mask_token_id is None:
        raise ValueError("tokenizer: has no mask token, which masked language modelling needs; use BERT's")
    if separator_of(tokenizer) is None:
        raise ValueError("tokenizer: has neither an end-of-text nor a separator token to set between documents")


def separator_of(tokenizer: Any) -> int | None:
    """The token between documents: the end-of-text token, else the separator."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def pad_of(tokenizer: Any) -> int:
    """The token to fill blocks up with: the padding token, else the first."""
    return tokenizer.pad_token_id or 0


def frame_of(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after one text."""
    alone = tokenizer("", add_special_tokens=True)["input_ids"]
    middle = (len(alone) + 1) // 2
    return alone[:middle], alone[middle:]


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, where: str = "the model") -> None:
    """Refuse a tokenizer that is not of a model's vocabulary.

    A model may have up to 128 entries, or a tenth, more than the tokenizer: vocabularies are rounded up.

    Raises:
        ValueError: token ids beyond the model's vocabulary, or far fewer tokens than the model has.
    """
    size, entries = getattr(config, "vocab_size", None), vocabulary_size(tokenizer)
    if size is None:
        raise ValueError(f"{where}: a {config.model_type} model has no vocabulary, so it cannot read text")
    if entries > size:
        raise ValueError(
            f"{where}: the tokenizer has {entries:,} tokens and the model {size:,} (ids from 0 to {size - 1}); use the "
            "tokenizer that the model was trained with"
        )
    if size > max(entries + _ROOM, 1.1 * entries):
        raise ValueError(
            f"{where}: the model has {size:,} tokens and the tokenizer only {entries:,}; use the tokenizer that the "
            "model was trained with"
        )


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest token id, plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 of everything that decides which tokens a text becomes; how they are cut and padded does not."""
    backend = _uncut(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _uncut(backend: Tokenizer) -> Tokenizer:
    """The same, told neither to cut nor to pad."""
    backend.no_truncation()
    backend.no_padding()
    return backend


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens; words like `[MASK]` in the text stay text."""
    backend = _uncut(tokenizer.backend_tokenizer)
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def pieces(text: str, size: int = 1 << 16) -> Iterator[str]:
    """A text in pieces of about `size` characters, cut after a line end between two lines that touch it.

    There the tokens of the pieces are those of the whole for byte-level BPE, WordPiece, characters and bytes. A text
    without such places stays whole.
    """
    start = 0
    while len(text) - start > size:
        end = _cut(text, start + size)
        if end is None:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, position: int) -> int | None:
    while (found := text.find("\n", position)) != -1 and found + 1 < len(text):
        if not text[found - 1].isspace() and not text[found + 1].isspace():
            return found + 1
        position = found + 1
    return None
