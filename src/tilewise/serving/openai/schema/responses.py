"""POST /v1/responses."""

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from tilewise.errors import InputError
from tilewise.inputs.conversation import parse_prompt
from tilewise.serving.openai.schema.base import Body, Count, No, Text, read_role
from tilewise.serving.openai.schema.sampling import TOP_K, Generating
from tilewise.types import GenerationConfig


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
            top_k=TOP_K,
            **more,
        )


def _read_item(item: dict[str, Any]) -> dict[str, Any]:
    """An input item as a chat message; an answer that comes back has an id and a status, which say nothing here."""
    if item.get("type", "message") != "message":
        raise InputError(f"Input item type {item['type']!r:.80} is not supported; use 'message'.", param="input")
    message = {key: item[key] for key in item if key not in ("type", "id", "status")}
    if isinstance(item.get("content"), list):
        message["content"] = [_read_part(part) for part in item["content"]]
    return read_role(message)


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
