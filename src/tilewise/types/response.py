"""What an engine says of a request, and what its caller gets."""

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request ended; every request ends with exactly one of these."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One chosen token with the most likely ones of its step: natural logarithms after penalties."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step says of one request: new ids, and on the last one why it ended.

    `token_ids` includes a stop token where one ended the request. `cached_tokens` counts prompt tokens that
    were not computed, and is set from the first output on.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answered request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    image_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Box:
    """A grounded region: `<ref>label</ref><box>[[x1, y1, x2, y2]]</box>`, coordinates in 0-1000 of each side."""

    label: str
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. The repr is the one LMDeploy's users know; further facts do not show in it.

    `generate_token_len` counts the stop token and `token_ids` does not.
    """

    text: str
    generate_token_len: int
    input_token_len: int
    session_id: int
    finish_reason: str | None
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] | None = None
    usage: Usage | None = field(default=None, repr=False)
    boxes: tuple[Box, ...] = field(default=(), repr=False)
