"""The Responses API without its memory: one message an answer, as one object or as events."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from tilewise.serving.http.errors import json_response
from tilewise.serving.http.events import EventStream, encode_event
from tilewise.serving.openai.choices import Choice
from tilewise.serving.openai.exchange import open_stream
from tilewise.serving.openai.schema.responses import ResponsesRequest
from tilewise.serving.stream import Stream


async def create_response(request: Request, body: ResponsesRequest) -> HttpResponse:
    """Answer an input; nothing of it is kept."""
    stream = await open_stream(request, body)
    answer = _Answer(body)
    if body.stream:
        return EventStream(stream, _stream_events(stream, answer))
    with stream:
        async for _, piece in stream:
            answer.choice.take(piece)
    return json_response(answer.document())


class _Answer:
    """What is told of an answer, again and again."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.choice = Choice()
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model,
            "error": None,
            "metadata": body.metadata or {},
            "parallel_tool_calls": False,
            "temperature": body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
        }

    @property
    def status(self) -> str:
        reason = self.choice.finish_reason
        return "in_progress" if reason is None else "incomplete" if reason == "length" else "completed"

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.choice.text, "annotations": [], "logprobs": []}

    def item(self) -> dict[str, Any]:
        head = {"id": self.item_id, "type": "message", "role": "assistant", "status": self.status}
        return {**head, "content": [] if self.status == "in_progress" else [self.part()]}

    def document(self) -> dict[str, Any]:
        is_over, usage = self.status != "in_progress", self.choice.usage
        details = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0, "image_tokens": usage.image_tokens}
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": details,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return {
            **self._head,
            "status": self.status,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "output": [self.item()] if is_over else [],
            "usage": counts if is_over else None,
        }


async def _stream_events(stream: Stream, answer: _Answer) -> AsyncIterator[bytes]:
    number = -1
    place = {"item_id": answer.item_id, "output_index": 0, "content_index": 0}

    def event(name: str, **facts: Any) -> bytes:
        nonlocal number
        number += 1
        return encode_event({"type": name, "sequence_number": number, **facts}, name)

    yield event("response.created", response=answer.document())
    yield event("response.in_progress", response=answer.document())
    yield event("response.output_item.added", output_index=0, item=answer.item())
    yield event("response.content_part.added", **place, part=answer.part())
    async for _, piece in stream:
        for delta in answer.choice.take(piece):
            yield event("response.output_text.delta", **place, delta=delta["text"], logprobs=[])
    yield event("response.output_text.done", **place, text=answer.choice.text, logprobs=[])
    yield event("response.content_part.done", **place, part=answer.part())
    yield event("response.output_item.done", output_index=0, item=answer.item())
    yield event(f"response.{answer.status}", response=answer.document())
