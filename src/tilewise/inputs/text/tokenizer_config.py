"""What tokenizer_config.json says of added tokens, of what prompts begin with, and of what ends a text."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tilewise.errors import CheckpointError
from tilewise.files import read_model_file

MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the pieces; one that `is_special` is left out of a text where special tokens are skipped."""

    name: str
    token_id: int
    is_special: bool


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The file's fields that are honoured; None where it does not say."""

    added: tuple[AddedToken, ...] = ()
    bos_name: str | None = None
    eos_name: str | None = None
    has_bos: bool | None = None
    tokenizer_class: str | None = None


def load_tokenizer_config(path: Path) -> TokenizerConfig:
    """Read a model folder's tokenizer_config.json.

    Raises:
        CheckpointError: it is missing or malformed, or asks for what cannot be honoured; the message names the field.
    """
    try:
        data: Any = json.loads(read_model_file(path, MAX_FILE_BYTES))
    except (ValueError, RecursionError):
        raise CheckpointError("tokenizer_config.json is not valid JSON; download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError("tokenizer_config.json must hold an object with added_tokens_decoder; download it again.")
    fields = cast(dict[str, Any], data)
    for name in ("add_eos_token", "add_prefix_space"):
        if fields.get(name):
            raise CheckpointError(f"tokenizer_config.json sets {name}, which is not supported; set it to false.")
    has_bos, tokenizer_class = fields.get("add_bos_token"), fields.get("tokenizer_class")
    return TokenizerConfig(
        added=_read_added_tokens(fields["added_tokens_decoder"]) if "added_tokens_decoder" in fields else (),
        bos_name=_read_name(fields, "bos_token"),
        eos_name=_read_name(fields, "eos_token"),
        has_bos=has_bos if isinstance(has_bos, bool) else None,
        tokenizer_class=tokenizer_class if isinstance(tokenizer_class, str) else None,
    )


def _read_added_tokens(table: Any) -> tuple[AddedToken, ...]:
    malformed = CheckpointError(
        "tokenizer_config.json must hold added_tokens_decoder, an object of id -> {content: name} with distinct names."
    )
    by_name: dict[str, AddedToken] = {}
    try:
        for token_id, token in table.items():
            name = token["content"]
            if not isinstance(name, str) or name in by_name or int(token_id) < 0:
                raise malformed
            check_is_plain(name, token.get("lstrip"), token.get("rstrip"))
            by_name[name] = AddedToken(name, int(token_id), token.get("special", True) is not False)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise malformed from None
    return tuple(by_name.values())


def check_is_plain(name: str, *strips: object) -> None:
    """Refuse an added token that swallows white space beside it, or is none but white space.

    A prompt's template would have to know the one, and would be cut at every such space by the other.
    """
    if not name.strip():
        raise CheckpointError(
            f"The added token {name!r:.80} is empty or white space, which is not supported; take the tokenizer's files "
            "from the model's own repository."
        )
    if any(strips):
        raise CheckpointError(
            f"The added token {name!r:.80} strips the white space beside it (lstrip, rstrip), which is not supported; "
            "use a checkpoint whose added tokens do not."
        )


def _read_name(fields: dict[str, Any], key: str) -> str | None:
    """The name of a token: text, or an object with its `content`."""
    value = fields.get(key)
    name = cast(dict[str, Any], value).get("content") if isinstance(value, dict) else value
    if name is None or isinstance(name, str):
        return name
    raise CheckpointError(f"{key} of tokenizer_config.json must be a token's name, or an object with its content.")


def find_token(name: str | None, added: Iterable[AddedToken], key: str) -> int | None:
    """The id of the added token that tokenizer_config.json names under `key`; None where it names none.

    Raises:
        CheckpointError: no added token has this name.
    """
    if name is None:
        return None
    for token in added:
        if token.name == name:
            return token.token_id
    raise CheckpointError(
        f"tokenizer_config.json says {key} {name!r:.80}, which is not among the added tokens; take the "
        "tokenizer's files from the model's own repository."
    )
