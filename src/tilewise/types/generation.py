"""How to continue a prompt: `GenerationConfig`, whose every field is checked when it is made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from tilewise.errors import InputError
from tilewise.types.checks import check_count, check_range, freeze

MAX_CHOICES = 16
MAX_STOP_WORDS = 16
MAX_WORD_LENGTH = 256
MAX_TOP_LOGPROBS = 20
MAX_FORMAT_BYTES = 64 << 10


def _freeze_words(name: str, words: object) -> tuple[str, ...]:
    given = (words,) if isinstance(words, str) else freeze(name, words)
    for word in given:
        if not isinstance(word, str) or not 0 < len(word) <= MAX_WORD_LENGTH:
            text = f"{name} must hold strings of 1 to {MAX_WORD_LENGTH} characters, got {word!r:.80}."
            raise InputError(text, param=name)
    return cast(tuple[str, ...], given)


def _freeze_ids(name: str, ids: object) -> tuple[int, ...]:
    given = freeze(name, ids)
    for token_id in given:
        check_count(name, token_id, 0, 2**31 - 1)
    return cast(tuple[int, ...], given)


# The types of response_format and the key that each needs; regex_schema is LMDeploy's name for regex.
_KEYED_FORMATS = ("json_schema", "choice", "regex", "regex_schema")
_FORMAT_KEYS = {"text": (), "json_object": (), **{kind: (kind,) for kind in _KEYED_FORMATS}}
_SCHEMA_KEYS = ("name", "description", "schema", "strict")


def _freeze_format(given: object) -> str | None:
    """Canonical JSON text of a response_format, None for plain text.

    The type `tool_calls` comes from `serving.openai.schema.tools` alone: it is taken as text, never as a mapping.
    """
    try:
        form = json.loads(given) if isinstance(given, str) else given
        if not isinstance(form, Mapping):
            raise ValueError("it must be an object with a type")
        fields = dict(cast(Mapping[str, object], form))
        if not (isinstance(given, str) and fields.get("type") == "tool_calls"):
            fields = _check_format(fields)
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if len(text.encode()) > MAX_FORMAT_BYTES:
            raise ValueError(f"it takes more than {MAX_FORMAT_BYTES} bytes")
    except RecursionError:
        raise InputError("response_format is nested too deeply.", param="response_format") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"response_format is refused: {error!s:.200}.", param="response_format") from None
    return None if fields["type"] == "text" else text


def _check_format(fields: dict[str, object]) -> dict[str, object]:
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in _FORMAT_KEYS:
        raise ValueError(f"type {kind!r:.80} is unknown; use {', '.join(_FORMAT_KEYS)}")
    if tuple(fields) != _FORMAT_KEYS[kind]:
        wanted = " and ".join(("type", *_FORMAT_KEYS[kind]))
        raise ValueError(f"type {kind} has the keys {wanted}, not {', '.join(map(str, fields)) or 'type alone'}")
    value: Any = fields.get(kind)
    if kind == "json_schema":
        if not isinstance(value, Mapping) or not isinstance(cast(Mapping[str, object], value).get("schema"), Mapping):
            raise ValueError("json_schema must hold a schema, an object")
        if unknown := [key for key in cast(Mapping[str, object], value) if key not in _SCHEMA_KEYS]:
            raise ValueError(f"json_schema has no field {unknown[0]!r:.80}; it has {', '.join(_SCHEMA_KEYS)}")
        return {"type": kind, kind: {"schema": value["schema"]}}  # strict or not: it is held to either way
    if kind == "choice":
        choices = tuple(cast(list[object], value)) if isinstance(value, (list, tuple)) else ()
        if not choices or not all(isinstance(choice, str) and choice for choice in choices):
            raise ValueError("choice must be a list of texts, none of them empty")
        return {"type": kind, kind: choices}
    if kind.startswith("regex"):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{kind} must be a regular expression, as text")
        return {"type": "regex", "regex": value}
    return {"type": kind}


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How to continue a prompt; field names and defaults are LMDeploy's.

    Greedy unless `do_sample`. `top_k=0` means no limit. `logprobs=k` returns the k most likely tokens of
    every step beside the chosen one. `random_seed` makes a sampled answer repeat in any company.
    `response_format` is the form that the answer must have, in OpenAI's terms; a mapping or JSON text is accepted.

    Raises:
        InputError: a field is outside its range; `param` names it.
    """

    n: int = 1
    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    temperature: float = 0.8
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    random_seed: int | None = None
    stop_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    bad_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    skip_special_tokens: bool = True
    logprobs: int | None = None
    response_format: str | None = None

    def __post_init__(self) -> None:
        """Freeze lists into tuples and check every range."""
        check_count("n", self.n, 1, MAX_CHOICES)
        check_count("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        check_count("top_k", self.top_k, 0, 2**31 - 1)
        check_count("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("temperature", self.temperature, 0.0, 100.0)
        check_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, low_open=True)
        check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.random_seed is not None:
            check_count("random_seed", self.random_seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            check_count("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        for name in ("do_sample", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r:.80}.", param=name)
        object.__setattr__(self, "stop_words", _freeze_words("stop_words", self.stop_words))
        object.__setattr__(self, "bad_words", _freeze_words("bad_words", self.bad_words))
        object.__setattr__(self, "stop_token_ids", _freeze_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "bad_token_ids", _freeze_ids("bad_token_ids", self.bad_token_ids))
        object.__setattr__(self, "logit_bias", self._freeze_bias())
        if self.response_format is not None:
            object.__setattr__(self, "response_format", _freeze_format(self.response_format))
        if len(self.stop_words) > MAX_STOP_WORDS:
            given = len(self.stop_words)
            raise InputError(f"stop_words holds {given}; at most {MAX_STOP_WORDS} are allowed.", param="stop_words")

    @property
    def needs_known_tokens(self) -> bool:
        """A token is chosen by what was said before it, and not by probabilities alone."""
        counts = self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return counts or self.response_format is not None

    def _freeze_bias(self) -> tuple[tuple[int, float], ...]:
        given: object = self.logit_bias
        pairs = freeze("logit_bias", cast(dict[object, object], given).items() if isinstance(given, dict) else given)
        for pair in pairs:
            if not isinstance(pair, tuple) or len(cast(tuple[object, ...], pair)) != 2:
                raise InputError(f"logit_bias must hold (id, bias) pairs, got {pair!r:.80}.", param="logit_bias")
            token_id, bias = cast(tuple[object, object], pair)
            check_count("logit_bias", token_id, 0, 2**31 - 1)
            check_range("logit_bias", bias, -100.0, 100.0)
        return cast(tuple[tuple[int, float], ...], pairs)
