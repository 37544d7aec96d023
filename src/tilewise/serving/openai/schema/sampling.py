"""How an answer is chosen: what chat, plain completions and responses share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tilewise.errors import InputError
from tilewise.serving.openai.schema.base import MAX_COUNT, MAX_KEYS, Bias, Body, Count, IdText, Label, TokenId, Word
from tilewise.types import MAX_CHOICES, MAX_STOP_WORDS, GenerationConfig

TOP_K = 40
# Fields that GenerationConfig calls the same.
_SAME_NAMES = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("ignore_eos", "stop_token_ids", "skip_special_tokens"),
)


class StreamOptions(Body):
    """What a stream tells beside text."""

    include_usage: bool = False


class Generating(Body):
    """What every request for an answer may say."""

    asks_for_answer: ClassVar[bool] = True
    # Whether the text goes to the model as it is, without the chat template.
    is_raw: ClassVar[bool] = False

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stream: bool = False
    # They label a request for OpenAI's own purposes, and change no answer.
    user: Label | None = None
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = None
    safety_identifier: Label | None = None
    # Prefixes are cached by content, for each API key apart.
    prompt_cache_key: Label | None = None
    service_tier: Literal["auto", "default"] = "auto"

    def generation(self, most_tokens: int) -> GenerationConfig:
        """Our terms for these; an answer of no stated length may take `most_tokens`."""
        raise NotImplementedError


class Sampling(Generating):
    """What chat and plain completions share."""

    api_names: ClassVar[dict[str, str]] = {
        "max_new_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "random_seed": "seed",
        "stop_words": "stop",
    }

    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: Word | Annotated[list[Word], Field(fail_fast=True, max_length=MAX_STOP_WORDS)] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[IdText, Bias], Field(max_length=MAX_KEYS)] = {}
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    # Not OpenAI's, but LMDeploy's and vLLM's.
    top_k: Annotated[int, Field(ge=0, le=MAX_COUNT)] = TOP_K
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=256)] = []
    skip_special_tokens: bool = True

    def generation(self, most_tokens: int, **more: Any) -> GenerationConfig:
        """Our terms for these; an answer of no stated length may take `most_tokens`."""
        if self.stream_options is not None and not self.stream:
            raise InputError("stream_options needs stream=true; leave it out.", param="stream_options")
        if self.response_format is not None:
            more.setdefault("response_format", self.response_format)
        same: dict[str, Any] = {name: getattr(self, name) for name in _SAME_NAMES}
        ours: dict[str, Any] = {
            "max_new_tokens": self.max_tokens or most_tokens,
            "min_new_tokens": self.min_tokens,
            "do_sample": self.temperature > 0,
            "logit_bias": tuple((int(token_id), bias) for token_id, bias in self.logit_bias.items()),
            "random_seed": None if self.seed is None else self.seed % 2**64,
            "stop_words": self.stop,
        }
        return GenerationConfig(**{**same, **ours, **more})
