"""Pieces of `tokenizer.model`: a SentencePiece model with byte fallback, as InternLM2 has."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tilewise.errors import CheckpointError
from tilewise.files import read_model_file
from tilewise.inputs.text.tokenizer_config import MAX_FILE_BYTES, TokenizerConfig, find_token

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# QUIRK: InternLM2 keeps spare pieces of these names; typed by a user, SentencePiece alone would yield their ids,
# and [UNUSED_TOKEN_145] is <|im_end|>.
_SPARE_PIECE = re.compile(r"\[UNUSED_TOKEN_\d+\]")
_SPACE_MARK = "\u2581"


class SentencePieces:
    """Implements `tokenizer.Pieces`."""

    source = "tokenizer.model"
    max_shrink = 1

    def __init__(self, library: "SentencePieceProcessor", config: TokenizerConfig) -> None:
        """Tabulate the pieces.

        Raises:
            CheckpointError: they have no byte fallback, or nothing ends a text.
        """
        ids = list(range(library.get_piece_size()))
        names = library.id_to_piece(ids)
        byte_ids = [token_id for token_id, is_byte in zip(ids, library.is_byte(ids), strict=True) if is_byte]
        if [names[token_id] for token_id in byte_ids] != [f"<0x{byte:02X}>" for byte in range(256)]:
            raise CheckpointError("tokenizer.model has no byte fallback (pieces <0x00> to <0xFF>); it is required.")
        self._library = library
        self.byte_ids = byte_ids
        self.token_bytes = [name.replace(_SPACE_MARK, " ").encode() for name in names]
        for byte, token_id in enumerate(byte_ids):
            self.token_bytes[token_id] = bytes([byte])
        flags = zip(library.is_control(ids), library.is_unknown(ids), library.is_unused(ids), strict=True)
        reserved = {token_id for token_id, kinds in zip(ids, flags, strict=True) if any(kinds)}
        reserved |= {token_id for token_id, name in enumerate(names) if _SPARE_PIECE.fullmatch(name)}
        self.reserved_ids = frozenset(reserved)
        self.added = config.added
        self.bos_id = self._find(config.bos_name, "bos_token", library.bos_id())
        # Source: tokenization_internlm2.py, where add_bos_token is true unless the file says otherwise.
        if config.has_bos is False:
            self.bos_id = None
        eos_id = self._find(config.eos_name, "eos_token", library.eos_id())
        if eos_id is None:
            raise CheckpointError(
                "Neither tokenizer_config.json (eos_token) nor tokenizer.model says what ends a text."
            )
        self.eos_id = eos_id

    def encode(self, text: str) -> list[int]:
        """Pieces of `text`; U+2581, which the pieces use for the space, in bytes, or it would come back as one."""
        head, *rest = text.split(_SPACE_MARK)
        ids = self._library.encode(head)
        for part in rest:
            ids += [self.byte_ids[byte] for byte in _SPACE_MARK.encode()]
            ids += self._library.encode(part)
        return ids

    def _find(self, name: str | None, key: str, own_id: int) -> int | None:
        """The token that tokenizer_config.json names, or else the model's own, which is -1 where it has none."""
        if name is not None:
            return find_token(name, self.added, key)
        return own_id if own_id >= 0 else None


def load(folder: Path, config: TokenizerConfig) -> SentencePieces:
    """Read `tokenizer.model`.

    Raises:
        CheckpointError: it is missing, malformed or of no use here.
    """
    import sentencepiece

    content = read_model_file(folder / "tokenizer.model", MAX_FILE_BYTES)
    # Level 2 keeps errors: InternLM2's model warns of its null piece on every load.
    sentencepiece.set_min_log_level(2)
    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError):
        raise CheckpointError("tokenizer.model is not a SentencePiece model; download it again.") from None
    return SentencePieces(library, config)
