"""POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from tilewise.errors import InputError
from tilewise.inputs.conversation import parse_prompt
from tilewise.serving.openai.schema.base import Count, Messages, No, read_role
from tilewise.serving.openai.schema.sampling import Sampling
from tilewise.serving.openai.schema.tools import MAX_TOOLS, add_tools
from tilewise.types import MAX_TOP_LOGPROBS, GenerationConfig


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
        messages = [read_role(message) for message in self.messages]
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
