"""Pieces of byte-level BPE, as Qwen has: a vocabulary and merges; `tokenizers` cuts text and merges the parts.

The library never knows an added token, so text cannot become one. Which files say all this, and what else they hold, is
`byte_level_files`' matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tilewise.errors import CheckpointError, InputError
from tilewise.inputs.text.tokenizer_config import AddedToken, TokenizerConfig, find_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

REMEDY = "Use the tokenizer files of a checkpoint with byte-level BPE, as Qwen's."
# No character decomposes to more than four (U+1F82), so NFC makes one of four at most.
_NFC_SHRINK = 4

Merge = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Split:
    """Where text is cut: at the matches of a regular expression, or at a fixed text."""

    pattern: str
    is_regex: bool = True
    behavior: str = "isolated"
    invert: bool = False


@dataclass(frozen=True, slots=True)
class BytePairs:
    """What makes up a byte-level BPE; `use_gpt2_pattern` cuts at GPT-2's pattern after the splits."""

    source: str
    vocab: dict[str, int]
    merges: Sequence[Merge]
    splits: Sequence[Split]
    use_gpt2_pattern: bool = False
    use_nfc: bool = True
    ignore_merges: bool = False


class ByteLevelPieces:
    """Implements `tokenizer.Pieces`."""

    reserved_ids: frozenset[int] = frozenset()

    def __init__(
        self, pairs: BytePairs, added: Sequence[AddedToken], config: TokenizerConfig, bos_id: int | None = None
    ) -> None:
        """Build the library's tokenizer; `bos_id` is what the tokenizer's own file begins prompts with.

        Raises:
            CheckpointError: vocabulary and merges do not fit each other, or lack a byte, or nothing ends a text.
        """
        self.source, self.added = pairs.source, added
        self.max_shrink = _NFC_SHRINK if pairs.use_nfc else 1
        self.token_bytes = _tabulate(pairs, {token.token_id for token in added})
        self.byte_ids = _find_bytes(pairs)
        # QUIRK: bos_token and add_bos_token of tokenizer_config.json say nothing here; Qwen2's class ignores both.
        self.bos_id = bos_id
        eos_id = find_token(config.eos_name, added, "eos_token")
        if eos_id is None:
            raise CheckpointError("tokenizer_config.json names no eos_token, which ends a text; add its name.")
        self.eos_id = eos_id
        self._library = _build_library(pairs)

    def encode(self, text: str) -> list[int]:
        """Pieces of `text`, normalised to NFC where the model wants it.

        Raises:
            InputError: the pattern that cuts text gave up, as it does on runs of more than ten million spaces.
        """
        # PERF: `encode` holds the interpreter's lock: 2.1 s for 2 MB, in which no other thread runs; this one does not,
        # and takes 1.5 s (one core of an x86 server, tokenizers 0.23, 2026-12).
        try:
            return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except BaseException as error:  # a panic of the library is no Exception, and its type cannot be imported
            if type(error).__name__ != "PanicException":
                raise
            raise InputError(
                "The tokenizer could not cut the text at its pattern; send a shorter one, or shorter runs of spaces."
            ) from error


def _alphabet() -> dict[int, int]:
    """Code points of byte-level BPE to bytes: printable Latin-1 stands for itself, U+0100 on for the other bytes.

    Source: GPT-2, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + number: byte for number, byte in enumerate(others)}


_BYTES = _alphabet()
# Latin-1 that stands for no byte becomes what Latin-1 cannot encode, as every other character is.
_TO_LATIN_1 = {code: _BYTES.get(code, 0xFFFF) for code in range(0x100)} | _BYTES


def _tabulate(pairs: BytePairs, added_ids: set[int]) -> list[bytes]:
    """Bytes of every piece. Added tokens that are listed among the pieces may have any name."""
    table = [b""] * len(pairs.vocab)
    if set(pairs.vocab.values()) != set(range(len(table))):
        raise CheckpointError(f"The ids of {pairs.source} must be 0, 1, 2 and so on without a gap; download it again.")
    for name, token_id in pairs.vocab.items():
        try:
            table[token_id] = name.translate(_TO_LATIN_1).encode("latin-1")
        except UnicodeEncodeError:
            if token_id not in added_ids:
                raise CheckpointError(
                    f"{pairs.source} has a piece {name!r:.80}, which is no sequence of bytes. {REMEDY}"
                ) from None
            table[token_id] = name.encode()
    return table


def _find_bytes(pairs: BytePairs) -> list[int]:
    ids = {byte: pairs.vocab.get(chr(code)) for code, byte in _BYTES.items()}
    found = [token_id for byte in range(256) if (token_id := ids[byte]) is not None]
    if len(found) != 256:
        raise CheckpointError(f"{pairs.source} lacks pieces of single bytes, so that not every text has ids. {REMEDY}")
    return found


def _build_library(pairs: BytePairs) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in pairs.merges]
    if any(len(merge) != 2 for merge in merges):
        raise CheckpointError("The merges of the tokenizer must be pairs; download its files again.")
    try:
        bpe = BPE(vocab=pairs.vocab, merges=cast(list[tuple[str, str]], merges), ignore_merges=pairs.ignore_merges)
        library = Tokenizer(bpe)
        steps: list[PreTokenizer] = [
            pre_tokenizers.Split(Regex(s.pattern) if s.is_regex else s.pattern, s.behavior, s.invert)
            for s in pairs.splits
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pairs.use_gpt2_pattern))
        library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{pairs.source} is malformed: {error!s:.200}. Download it again.") from None
    if pairs.use_nfc:
        library.normalizer = normalizers.NFC()
    return library
