"""Text to ids and back: SentencePiece for words, the model folder's table for special tokens.

Special ids come from structure only. `encode` treats whatever it is given as words, so text that looks like a
special token becomes ordinary pieces, and `special_id` is the one way to a special id. `decode(encode(text))`
is `text` for every text. Knows nothing of prompts and pictures.
"""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tilewise.errors import CheckpointError, InputError
from tilewise.files import read_model_file

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Source: tokenizer_config.json of OpenGVLab/InternVL-Chat-V1-5.
SPECIAL_NAMES = (
    *("<unk>", "<s>", "</s>", "<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>"),
    *("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)

# QUIRK: InternLM2 keeps spare pieces of these names; typed by a user, SentencePiece alone would yield their ids,
# and [UNUSED_TOKEN_145] is <|im_end|>.
_SPARE_PIECE = re.compile(r"\[UNUSED_TOKEN_\d+\]")
_SPACE_MARK = "\u2581"
_PROBE = "a  b\n\n Ａ\t"
_MAX_FILE_BYTES = 64 << 20


class Tokenizer:
    """A SentencePiece model with byte fallback, and special tokens beside it. Safe to share between threads."""

    def __init__(self, pieces: "SentencePieceProcessor", special_tokens: Mapping[str, int]) -> None:
        """Tabulate the bytes of every token and what stands for the pieces that text may not yield.

        Raises:
            CheckpointError: the pieces cannot give every text back, or the special tokens do not fit them.
        """
        ids = list(range(pieces.get_piece_size()))
        names = pieces.id_to_piece(ids)
        byte_ids = [token_id for token_id, is_byte in zip(ids, pieces.is_byte(ids), strict=True) if is_byte]
        if [names[token_id] for token_id in byte_ids] != [f"<0x{byte:02X}>" for byte in range(256)]:
            raise CheckpointError("tokenizer.model has no byte fallback (pieces <0x00> to <0xFF>); it is required.")
        self._pieces = pieces
        self.special_tokens = dict(special_tokens)
        self._byte_ids = byte_ids
        self._token_bytes = [name.replace(_SPACE_MARK, " ").encode() for name in names]
        for byte, token_id in enumerate(byte_ids):
            self._token_bytes[token_id] = bytes([byte])
        self._place_special_tokens()
        self.special_ids = frozenset(self.special_tokens.values())
        self.vocab_size = len(self._token_bytes)
        self._longest_piece = max(map(len, names))
        flags = zip(pieces.is_control(ids), pieces.is_unknown(ids), pieces.is_unused(ids), strict=True)
        reserved = {token_id for token_id, kinds in zip(ids, flags, strict=True) if any(kinds)}
        reserved |= {token_id for token_id, name in enumerate(names) if _SPARE_PIECE.fullmatch(name)}
        self.reserved_ids = self.special_ids | reserved
        self._stand_ins = {
            i: self._spell(names[i].replace(_SPACE_MARK, " ")) for i in self.reserved_ids if i < len(names)
        }
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise CheckpointError(
                "tokenizer.model changes the text it encodes (a dummy prefix or a normaliser); such models are not "
                "supported."
            )

    def encode(self, text: str) -> list[int]:
        """Ordinary pieces of `text`, never a special id. Takes about 0.3 s a megabyte.

        Raises:
            InputError: the text holds half a surrogate pair, which has no UTF-8 form.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = error.start
            raise InputError(f"The text holds half a surrogate pair at character {where}; send whole ones.") from None
        # The pieces use U+2581 for the space; the character itself must not come back as one.
        head, *rest = text.split(_SPACE_MARK)
        ids = self._encode_ordinary(head)
        for part in rest:
            ids += self._spell_in_bytes(_SPACE_MARK)
            ids += self._encode_ordinary(part)
        return ids

    def count_at_least(self, text: str) -> int:
        """A lower bound of `len(encode(text))` that costs nothing, to refuse what is far too long."""
        return -(-len(text) // self._longest_piece)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """UTF-8 bytes of one token, possibly a part of a character."""
        is_skipped = skip_special_tokens and token_id in self.special_ids
        return b"" if is_skipped or not 0 <= token_id < self.vocab_size else self._token_bytes[token_id]

    def special_id(self, name: str) -> int:
        """Id of a special token by its name.

        Raises:
            CheckpointError: the model has no such token.
        """
        try:
            return self.special_tokens[name]
        except KeyError:
            known = ", ".join(self.special_tokens)
            raise CheckpointError(f"The model has no special token {name!r}; it has {known}.") from None

    def _place_special_tokens(self) -> None:
        by_id = {token_id: name.encode() for name, token_id in self.special_tokens.items()}
        num_pieces = len(self._token_bytes)
        beyond = sorted(token_id for token_id in by_id if token_id >= num_pieces)
        is_gapless = beyond == list(range(num_pieces, num_pieces + len(beyond)))
        if len(by_id) != len(self.special_tokens) or not is_gapless or not by_id.keys().isdisjoint(self._byte_ids):
            raise CheckpointError(
                "The special tokens of tokenizer_config.json do not fit tokenizer.model: ids must be distinct, "
                f"not those of bytes, and beyond its {num_pieces} pieces without a gap."
            )
        self._token_bytes += [b""] * len(beyond)
        for token_id, name in by_id.items():
            self._token_bytes[token_id] = name

    def _encode_ordinary(self, text: str) -> list[int]:
        ids = self._pieces.encode(text)
        if self.reserved_ids.isdisjoint(ids):
            return ids
        return list(chain.from_iterable(self._stand_ins.get(token_id, (token_id,)) for token_id in ids))

    def _spell(self, text: str) -> list[int]:
        """A reserved piece's text in ordinary pieces: cut after its first character, or else byte by byte."""
        ids = self._pieces.encode(text[:1]) + self._pieces.encode(text[1:])
        return ids if self.reserved_ids.isdisjoint(ids) else self._spell_in_bytes(text)

    def _spell_in_bytes(self, text: str) -> list[int]:
        return [self._byte_ids[byte] for byte in text.encode()]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.model` and the `added_tokens_decoder` of `tokenizer_config.json` from a model folder.

    Raises:
        CheckpointError: a file is missing or malformed, or special tokens are missing; the message names them.
    """
    special_tokens = _load_special_tokens(folder / "tokenizer_config.json")
    missing = [name for name in SPECIAL_NAMES if name not in special_tokens]
    if missing:
        raise CheckpointError(
            f"tokenizer_config.json lacks special tokens in added_tokens_decoder: {', '.join(missing)}; "
            "take the file from the model's own repository."
        )
    return Tokenizer(_load_pieces(folder / "tokenizer.model"), special_tokens)


def _load_pieces(path: Path) -> "SentencePieceProcessor":
    import sentencepiece

    content = read_model_file(path, _MAX_FILE_BYTES)
    # Level 2 keeps errors: InternLM2's model warns of its null piece on every load.
    sentencepiece.set_min_log_level(2)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError):
        raise CheckpointError("tokenizer.model is not a SentencePiece model; download it again.") from None


def _load_special_tokens(path: Path) -> dict[str, int]:
    malformed = CheckpointError(
        "tokenizer_config.json must hold added_tokens_decoder, an object of id -> {content: name} with distinct names."
    )
    try:
        table = json.loads(read_model_file(path, _MAX_FILE_BYTES))["added_tokens_decoder"]
        names = {int(token_id): token["content"] for token_id, token in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise malformed from None
    special_tokens = {name: token_id for token_id, name in names.items() if isinstance(name, str) and token_id >= 0}
    if len(special_tokens) != len(table):
        raise malformed
    return special_tokens
