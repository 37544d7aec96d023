"""What clients may send, field by field, and what they get: OpenAI's API with the extras that LMDeploy's users know.

A field is honoured, or accepted because it asks for nothing that this server does otherwise, or refused by name.
Every number is bounded here. `null` is a field left out. What messages hold is for `inputs.conversation` to judge.
"""

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, PrivateAttr, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tilewise.errors import InputError
from tilewise.inputs.conversation import Message, parse_prompt
from tilewise.serving.openai.tools import MAX_TOOLS, add_tools
from tilewise.types import MAX_CHOICES, MAX_STOP_WORDS, MAX_TOP_LOGPROBS, MAX_WORD_LENGTH, GenerationConfig

_MAX_COUNT = 2**31 - 1
_TOP_K = 40
# More keys than any object among the fields may have, its own bounds apart.
_MAX_KEYS = 1024
# Fields that GenerationConfig calls the same.
_SAME_NAMES = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("ignore_eos", "stop_token_ids", "skip_special_tokens"),
)

Word = Annotated[str, Field(min_length=1, max_length=MAX_WORD_LENGTH)]
Text = Annotated[str, Field(min_length=1)]
IdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Label = Annotated[str, Field(max_length=512)]
Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
TokenId = Annotated[int, Field(ge=0, le=_MAX_COUNT)]


def _check_bool(value: object) -> object:
    if not isinstance(value, bool):  # NOTE: to a Literal, 0 is False
        raise ValueError("must be true or false")
    return value


No = Annotated[Literal[False], BeforeValidator(_check_bool)]
_PART = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "image_url"]}}}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE = {"enum": list(_ROLES)}
_MESSAGE: dict[str, Any] = {"type": "object", "required": ["role"], "properties": {"role": _ROLE, "content": _CONTENT}}
Messages = Annotated[
    list[dict[str, Any]],
    Field(
        fail_fast=True,
        min_length=1,
        max_length=4096,
        json_schema_extra={"items": _MESSAGE},
        examples=[[{"role": "user", "content": "What is a tile?"}]],
    ),
]


class Body(BaseModel):
    """A request's body: unknown fields are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)
    # Fields that deeper layers call otherwise; their errors are told in these names.
    api_names: ClassVar[dict[str, str]] = {}

    # Read when a body is checked, which happens off the event loop.
    _messages: tuple[Message, ...] = PrivateAttr(default=())

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What is said, as messages."""
        return self._messages

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """Drop them, and refuse at once what the validator would refuse key by key, without a pause for others."""
        if not isinstance(data, dict):
            return data
        given, known = cast(dict[str, Any], data), cls.model_fields
        if len(given) > len(known):
            unknown = f"{next(key for key in given if key not in known):.80}"
            raise InputError(f"Field {unknown!r} is not supported here; leave it out.", param=unknown)
        for key, value in given.items():
            if isinstance(value, dict) and len(cast(dict[str, Any], value)) > _MAX_KEYS:
                raise InputError(f"{key:.80} has more than {_MAX_KEYS} keys.", param=f"{key:.80}")
        return {key: value for key, value in given.items() if value is not None or key not in known}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        document = handler.resolve_ref_schema(handler(schema))
        fields = document.get("properties", {})
        for name in fields.keys() - set(document.get("required", ())):
            fields[name] = {"anyOf": [fields[name], {"type": "null"}]}
        return document


class StreamOptions(Body):
    """What a stream tells beside text."""

    include_usage: bool = False


class Generating(Body):
    """What every request for an answer may say."""

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
    logit_bias: Annotated[dict[IdText, Bias], Field(max_length=_MAX_KEYS)] = {}
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    # Not OpenAI's, but LMDeploy's and vLLM's.
    top_k: Annotated[int, Field(ge=0, le=_MAX_COUNT)] = _TOP_K
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_COUNT)] = 0
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


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_TOOLS)] = []
    tool_choice: str | dict[str, Any] | None = None
    # An answer holds one call at most, and is text; nothing is kept.
    parallel_tool_calls: No | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True, max_length=1)] | None = None
    store: No | None = None

    _more: dict[str, Any] = PrivateAttr(default_factory=dict)

    def model_post_init(self, _: Any, /) -> None:
        """Read the messages: it takes time, and a body is checked off the event loop."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("top_logprobs needs logprobs=true.", param="top_logprobs")
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            raise InputError("max_tokens and max_completion_tokens differ; give one.", param="max_tokens")
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise InputError("tool_choice needs tools; give some, or leave it out.", param="tool_choice")
        messages = [_read_role(message) for message in self.messages]
        if self.tools:
            messages, form = add_tools(messages, self.tools, self.tool_choice or "auto")
            if form is not None and self.response_format not in (None, {"type": "text"}):
                raise InputError("tools and response_format exclude each other; give one.", param="response_format")
            self._more = {} if form is None else {"response_format": form}
        self._messages = parse_prompt(messages)

    @property
    def has_tools(self) -> bool:
        """Whether the answer may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def generation(self, most_tokens: int, **more: Any) -> GenerationConfig:
        """See `Sampling.generation`."""
        if self.max_completion_tokens is not None:
            more["max_new_tokens"] = self.max_completion_tokens
        wanted = (self.top_logprobs or 0) if self.logprobs else None
        return super().generation(most_tokens, logprobs=wanted, **self._more, **more)


class CompletionRequest(Sampling):
    """POST /v1/completions: text goes on from text, without the chat template."""

    api_names: ClassVar[dict[str, str]] = {**Sampling.api_names, "messages": "prompt"}

    prompt: Text | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: No = False
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    def model_post_init(self, _: Any, /) -> None:
        """The prompt is the one message that the raw template takes."""
        self._messages = parse_prompt(self.prompt if isinstance(self.prompt, str) else self.prompt[0])

    def generation(self, most_tokens: int, **more: Any) -> GenerationConfig:
        """See `Sampling.generation`."""
        return super().generation(most_tokens, logprobs=self.logprobs, **more)


class TextFormat(Body):
    """What an answer of the Responses API must look like."""

    format: dict[str, Any] | None = None


class ResponsesRequest(Generating):
    """POST /v1/responses: nothing is stored, so every request holds the whole conversation."""

    api_names: ClassVar[dict[str, str]] = {
        "messages": "input",
        "max_new_tokens": "max_output_tokens",
        "response_format": "text.format",
    }

    input: Text | Annotated[list[dict[str, Any]], Field(fail_fast=True, min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextFormat | None = None
    store: No | None = None
    background: No | None = None
    truncation: Literal["disabled"] | None = None
    parallel_tool_calls: No | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=0)] | None = None

    def model_post_init(self, _: Any, /) -> None:
        """Read the input, off the event loop."""
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        self._messages = parse_prompt(system + [_read_item(item) for item in items])

    @property
    def format(self) -> dict[str, Any]:
        """What the answer must look like."""
        return (self.text.format if self.text else None) or {"type": "text"}

    def generation(self, most_tokens: int) -> GenerationConfig:
        """Our terms for these."""
        wanted = self.format
        if wanted.get("type") == "json_schema":  # here the schema lies beside its type
            wanted = {"type": "json_schema", "json_schema": {k: v for k, v in wanted.items() if k != "type"}}
        more: dict[str, Any] = {} if wanted == {"type": "text"} else {"response_format": wanted}
        return GenerationConfig(
            max_new_tokens=self.max_output_tokens or most_tokens,
            do_sample=self.temperature > 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=_TOP_K,
            **more,
        )


def _read_item(item: dict[str, Any]) -> dict[str, Any]:
    """An input item as a chat message; an answer that comes back has an id and a status, which say nothing here."""
    if item.get("type", "message") != "message":
        raise InputError(f"Input item type {item['type']!r:.80} is not supported; use 'message'.", param="input")
    message = {key: item[key] for key in item if key not in ("type", "id", "status")}
    if isinstance(item.get("content"), list):
        message["content"] = [_read_part(part) for part in item["content"]]
    return _read_role(message)


def _read_role(message: dict[str, Any]) -> dict[str, Any]:
    """A client's role as ours: `developer` is OpenAI's newer name for the system, and `tools` comes from `tools`."""
    role = message.get("role")
    if isinstance(role, str) and role not in _ROLES:
        raise InputError(f"Role {role[:80]!r} is unknown; use {', '.join(_ROLES)}.", param="role")
    return {**message, "role": "system"} if role == "developer" else message


def _read_part(part: Any) -> dict[str, Any]:
    given = cast(dict[str, Any], part) if isinstance(part, dict) else {}
    kind = given.get("type")
    if kind in ("input_text", "output_text"):
        # An answer that comes back has these, and they say nothing.
        empty = [key for key in ("annotations", "logprobs") if kind == "output_text" and not given.get(key)]
        more = {key: given[key] for key in given if key not in ("type", "text", *empty)}
        return {"type": "text", "text": given.get("text"), **more}
    if kind == "input_image":
        more = {key: given[key] for key in given if key not in ("type", "image_url")}
        return {"type": "image_url", "image_url": {"url": given.get("image_url"), **more}}
    text = f"Content part type {kind!r:.80} is not supported; use 'input_text' or 'input_image'."
    raise InputError(text, param="input")


class TokenizeRequest(Body):
    """POST /tokenize: the ids of a text, or of a conversation with its template and pictures."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None

    def model_post_init(self, _: Any, /) -> None:
        """Read the messages, off the event loop."""
        if (self.prompt is None) == (self.messages is None):
            raise InputError("Give prompt or messages, one of them.", param="prompt")
        self._messages = parse_prompt([_read_role(message) for message in self.messages]) if self.messages else ()


class DetokenizeRequest(Body):
    """POST /detokenize: the text of ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=1 << 20)]
    skip_special_tokens: bool = False
