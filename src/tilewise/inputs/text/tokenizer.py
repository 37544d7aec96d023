"""Text to ids and back: a library's pieces for text, the model folder's table for special tokens.

Special ids come from structure only. `encode` treats whatever it is given as plain text, so what looks like a
special token becomes ordinary pieces, and `special_id` is the one way to a special id. `decode(encode(text))`
is `text` for every text, up to NFC where the tokenizer normalises. Knows nothing of prompts and pictures.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

from tilewise.errors import CheckpointError, InputError
from tilewise.inputs.text import byte_level_files, sentence_pieces
from tilewise.inputs.text.tokenizer_config import AddedToken, load_tokenizer_config

_PROBE = "a  b\n\n Ａ\t"
# Slices in which a long text is counted: characters a token that is allowed, and at least so many.
_SLICE_CHARS, _MIN_SLICE = 8, 1 << 16
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


class Pieces(Protocol):
    """What one library makes of text; `Tokenizer` keeps special tokens out of it. Safe to share between threads."""

    @property
    def source(self) -> str:
        """The file that the pieces come from, for messages."""
        ...

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """UTF-8 of each piece by its id, possibly a part of a character."""
        ...

    @property
    def byte_ids(self) -> Sequence[int]:
        """The ids of the 256 pieces of one byte: what makes every text encodable."""
        ...

    @property
    def reserved_ids(self) -> frozenset[int]:
        """Pieces that text may not yield, beside the added tokens."""
        ...

    @property
    def added(self) -> Sequence[AddedToken]:
        """The tokens that are added to the pieces."""
        ...

    @property
    def bos_id(self) -> int | None:
        """What every prompt begins with, if there is such a token."""
        ...

    @property
    def eos_id(self) -> int:
        """What ends a text."""
        ...

    @property
    def max_shrink(self) -> int:
        """How many characters normalising makes one of, at most."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which has a UTF-8 form; they may be reserved ones, and those of added tokens."""
        ...


class Tokenizer:
    """Pieces for text, and added tokens beside them. Safe to share between threads.

    Attributes:
        special_tokens: Ids of all added tokens by their names.
        special_ids: The added tokens that are left out of a text where special tokens are skipped. Others are shown
            always, as Qwen's <tool_call> is; text does not become one of those either.
        reserved_ids: What text never becomes: the added tokens, and pieces that the library reserves.
        bos_id: What every prompt begins with; None where nothing is put before the prompt.
        eos_id: What ends a text; never part of one.
        vocab_size: Ids are below this.
    """

    def __init__(self, pieces: Pieces, num_rows: int | None = None) -> None:
        """Tabulate the bytes of every token and what stands for the pieces that text may not yield.

        `num_rows` is how many ids the model has; added tokens beyond them are left out, as if no file named them.

        Raises:
            CheckpointError: the pieces cannot give every text back, or the added tokens do not fit them.
        """
        self._pieces = pieces
        if num_rows is not None and len(pieces.token_bytes) > num_rows:
            raise CheckpointError(
                f"{pieces.source} has {len(pieces.token_bytes)} pieces, the model only {num_rows} ids: they do not "
                "fit. Take the files of both from the model's own repository."
            )
        # QUIRK: InternVL's Hugging Face checkpoints with Qwen2.5 add <video> just behind the model's last id.
        added = [token for token in pieces.added if num_rows is None or token.token_id < num_rows]
        self._token_bytes = _place_added_tokens(pieces, added)
        self.special_tokens = {token.name: token.token_id for token in added}
        self.special_ids = frozenset(token.token_id for token in added if token.is_special)
        self.reserved_ids = pieces.reserved_ids | frozenset(self.special_tokens.values())
        self.bos_id, self.eos_id = pieces.bos_id, pieces.eos_id
        self.vocab_size = len(self._token_bytes)
        ends = {token_id for token_id in (self.bos_id, self.eos_id) if token_id is not None}
        if not ends <= self.reserved_ids:
            raise CheckpointError(
                "tokenizer_config.json names a bos_token or an eos_token that is an ordinary piece, or that the model "
                "has no id for; it must be an added token. Take the file from the model's own repository."
            )
        ordinary = (raw for token_id, raw in enumerate(pieces.token_bytes) if token_id not in self.reserved_ids)
        self._longest_piece = max(len(raw.translate(None, _CONTINUATION_BYTES)) for raw in ordinary)
        within = (token_id for token_id in self.reserved_ids if token_id < len(pieces.token_bytes))
        self._stand_ins = {token_id: self._replace(pieces.token_bytes[token_id]) for token_id in within}
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise CheckpointError(
                f"{pieces.source} changes the text it encodes (a dummy prefix or a normaliser); such models are not "
                "supported."
            )

    def encode(self, text: str) -> list[int]:
        """Ordinary pieces of `text`, never a special id. Other threads run meanwhile.

        A megabyte takes up to 1 s and 330 MiB; ask `is_far_longer` before a stranger's text.

        Raises:
            InputError: the text holds half a surrogate pair, which has no UTF-8 form, or a pattern gives up on it.
        """
        _check_is_whole(text)
        ids = self._pieces.encode(text)
        if self.reserved_ids.isdisjoint(ids):
            return ids
        return list(chain.from_iterable(self._stand_ins.get(token_id, (token_id,)) for token_id in ids))

    def spell(self, text: str) -> list[int]:
        """The pieces of the single bytes of `text`, which nothing normalises."""
        return [self._pieces.byte_ids[byte] for byte in text.encode()]

    def count_at_least(self, text: str) -> int:
        """A lower bound of `len(encode(text))` that costs nothing, to refuse what is far too long."""
        max_shrink = 1 if text.isascii() else self._pieces.max_shrink
        return -(-len(text) // (self._longest_piece * max_shrink))

    def is_far_longer(self, text: str, num_tokens: int) -> bool:
        """Whether `text` takes many more than `num_tokens` tokens, told from no more of it than that needs.

        A long text is counted in slices until they come to twice as many: a cut changes the pieces near it alone.

        Raises:
            InputError: as `encode`.
        """
        if self.count_at_least(text) > num_tokens:
            return True
        size = max(_MIN_SLICE, _SLICE_CHARS * num_tokens)
        if len(text) <= size:
            return False
        _check_is_whole(text)
        found = 0
        for start in range(0, len(text), size):
            found += len(self._pieces.encode(text[start : start + size]))
            if found > 2 * num_tokens:
                return True
        return False

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """UTF-8 bytes of one token, possibly a part of a character."""
        is_skipped = skip_special_tokens and token_id in self.special_ids
        return b"" if is_skipped or not 0 <= token_id < self.vocab_size else self._token_bytes[token_id]

    def special_id(self, name: str) -> int:
        """Id of an added token by its name.

        Raises:
            CheckpointError: the model has no such token.
        """
        try:
            return self.special_tokens[name]
        except KeyError:
            known = ", ".join(self.special_tokens)
            raise CheckpointError(f"The model has no special token {name!r}; it has {known}.") from None

    def _replace(self, raw: bytes) -> list[int]:
        """A reserved piece's text in ordinary pieces: cut after its first character, or else byte by byte."""
        text = raw.decode(errors="replace")
        ids = self._pieces.encode(text[:1]) + self._pieces.encode(text[1:])
        if self.reserved_ids.isdisjoint(ids) and b"".join(self._token_bytes[i] for i in ids) == raw:
            return ids
        return [self._pieces.byte_ids[byte] for byte in raw]


def load_tokenizer(folder: Path, num_rows: int | None = None) -> Tokenizer:
    """Read a model folder's tokenizer and its `tokenizer_config.json`; no code of the folder runs.

    Added tokens from id `num_rows` on are left out: the model has no embedding of them.

    Where there are several, `tokenizer.model` (SentencePiece) wins: it is what InternLM2's own class reads, and a
    tokenizer.json beside it is a conversion, which may give other ids. Then `tokenizer.json`, which says all that is to
    be known, and last `vocab.json` with `merges.txt`, which leave it to Qwen2's class how text is cut.

    Raises:
        CheckpointError: a file is missing or malformed, or holds what cannot be honoured; the message names it.
    """
    config = load_tokenizer_config(folder / "tokenizer_config.json")
    if (folder / "tokenizer.model").exists():
        return Tokenizer(sentence_pieces.load(folder, config), num_rows)
    if (folder / "tokenizer.json").exists():
        return Tokenizer(byte_level_files.load_json(folder, config), num_rows)
    if (folder / "vocab.json").exists() or (folder / "merges.txt").exists():
        return Tokenizer(byte_level_files.load_vocab_and_merges(folder, config), num_rows)
    raise CheckpointError(
        f"{str(folder)!r:.200} holds no tokenizer: neither tokenizer.model, nor tokenizer.json, nor vocab.json with "
        "merges.txt. Take one from the model's own repository."
    )


def _check_is_whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = error.start
        raise InputError(f"The text holds half a surrogate pair at character {where}; send whole ones.") from None


def _place_added_tokens(pieces: Pieces, added: Sequence[AddedToken]) -> list[bytes]:
    """Bytes of every token, the added ones put over and behind the pieces."""
    token_bytes = list(pieces.token_bytes)
    by_id = {token.token_id: token.name.encode() for token in added}
    beyond = sorted(token_id for token_id in by_id if token_id >= len(token_bytes))
    is_gapless = beyond == list(range(len(token_bytes), len(token_bytes) + len(beyond)))
    if len(by_id) != len(added) or not is_gapless or not by_id.keys().isdisjoint(pieces.byte_ids):
        raise CheckpointError(
            f"The special tokens of tokenizer_config.json do not fit {pieces.source}: ids must be distinct, "
            f"not those of bytes, and beyond its {len(token_bytes)} pieces without a gap."
        )
    token_bytes += [b""] * len(beyond)
    for token_id, name in by_id.items():
        token_bytes[token_id] = name
    return token_bytes
