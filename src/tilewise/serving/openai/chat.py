"""POST /v1/chat/completions: an assistant's message, with its calls of tools."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.serving.openai.choices import Choice
from tilewise.serving.openai.exchange import complete
from tilewise.serving.openai.schema.chat import ChatRequest
from tilewise.serving.openai.tool_stream import ToolCallDelta, ToolSplitter
from tilewise.types import Response, TokenLogprob


class ChatChoice(Choice):
    """An assistant's message, with its calls of tools where a splitter finds some."""

    def __init__(self, tokenizer: Tokenizer, *, wants_logprobs: bool, has_tools: bool) -> None:
        """Start with nothing."""
        super().__init__(tokenizer, wants_logprobs=wants_logprobs)
        self._calls: list[dict[str, Any]] = []
        self._splitter = ToolSplitter() if has_tools else None

    def opening(self) -> list[dict[str, Any]]:
        """See `Choice.opening`: the role comes first."""
        return [{"delta": {"role": "assistant", "content": ""}}]

    def _take_text(self, piece: Response) -> list[dict[str, Any]]:
        parts: list[str | ToolCallDelta] = [piece.text] if piece.text else []
        if self._splitter is not None:
            parts = self._splitter.push(piece.text) + (self._splitter.finish() if self.finish_reason else [])
        says: list[dict[str, Any]] = [{"delta": self._take_part(part)} for part in parts]
        if self.finish_reason == "stop" and self._calls:
            self.finish_reason = "tool_calls"
        if self.wants_logprobs and piece.logprobs:
            says = says or [{"delta": {"content": ""}}]
            says[0]["logprobs"] = self._tell(piece.logprobs)
        return [*says, {"delta": {}, "finish_reason": self.finish_reason}] if self.finish_reason else says

    def _take_part(self, part: str | ToolCallDelta) -> dict[str, Any]:
        if isinstance(part, str):
            self.text += part
            return {"content": part}
        if part.name is not None:
            function = {"name": part.name, "arguments": part.arguments}
            self._calls.append({"id": part.id, "type": "function", "function": dict(function)})
            return {"tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": function}]}
        self._calls[part.index]["function"]["arguments"] += part.arguments
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}

    def whole(self) -> dict[str, Any]:
        """See `Choice.whole`."""
        calls = {"tool_calls": self._calls} if self._calls else {}
        content = self.text if self.text or not calls else None
        message = {"role": "assistant", "content": content, "refusal": None, **calls}
        told = self._tell(self._logprobs) if self.wants_logprobs else None
        return {"message": message, "logprobs": told, "finish_reason": self.finish_reason}

    def _tell(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        told = [self._describe(entry.token_id, entry.logprob) for entry in entries]
        for token, entry in zip(told, entries, strict=True):
            token["top_logprobs"] = [self._describe(*pair) for pair in entry.top]
        return {"content": told, "refusal": None}


async def create_chat_completion(request: Request, body: ChatRequest) -> HttpResponse:
    """Answer a conversation."""

    def create_choice(tokenizer: Tokenizer) -> ChatChoice:
        return ChatChoice(tokenizer, wants_logprobs=body.logprobs, has_tools=body.has_tools)

    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    return await complete(request, body, create_choice, "chatcmpl", kind)
