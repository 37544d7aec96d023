"""Chat completions and plain ones: pieces of answers as OpenAI's objects and events."""

import asyncio
import codecs
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from tilewise.errors import InputError
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.serving.async_engine import Stream
from tilewise.serving.http.gateway import EventStream, encode_event
from tilewise.serving.http.routes import service_of
from tilewise.serving.openai.schema import ChatRequest, CompletionRequest, ResponsesRequest, Sampling
from tilewise.serving.openai.tools import ToolCallDelta, ToolSplitter
from tilewise.types import GenerationConfig, Response, TokenLogprob, Usage

# OpenAI's own value for what has no probability worth telling; JSON has no infinity.
_LEAST_LOGPROB = -9999.0
# Logprobs of all choices and tokens of one request. An answer as long as a session of 32,768 tokens fits, with 20
# likely ones a token. PERF: they take 450 MiB while they are written, and 3 s (2 cores, 2026-11-28).
MAX_LOGPROBS = 1 << 20


class Choice:
    """One answer as far as it has come; the kinds of completion differ in how they tell it."""

    def __init__(self, tokenizer: Tokenizer | None = None, *, wants_logprobs: bool = False) -> None:
        """Start with nothing; the tokenizer names the tokens of logprobs."""
        self.text: str = ""
        self.finish_reason: str | None = None
        self.usage = Usage(0, 0)
        self.wants_logprobs = wants_logprobs
        self._tokenizer = tokenizer
        self._logprobs: list[TokenLogprob] = []

    def take(self, piece: Response) -> list[dict[str, Any]]:
        """Take a piece; give what a stream's entries say of it."""
        assert piece.usage is not None
        self.usage, self.finish_reason = piece.usage, piece.finish_reason
        self._logprobs += piece.logprobs or []
        return self._take_text(piece)

    def _take_text(self, piece: Response) -> list[dict[str, Any]]:
        self.text += piece.text
        return [{"text": piece.text}] if piece.text else []

    def opening(self) -> list[dict[str, Any]]:
        """What a stream's entries say before there is anything."""
        return []

    def whole(self) -> dict[str, Any]:
        """The entry of an answer that has ended."""
        raise NotImplementedError

    def _describe(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A token with its bytes, which may be a part of a character."""
        assert self._tokenizer is not None
        raw = self._tokenizer.token_bytes(token_id, False)
        return {"token": raw.decode(errors="replace"), "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(raw)}


class TextChoice(Choice):
    """A plain completion."""

    def __init__(self, tokenizer: Tokenizer, *, wants_logprobs: bool, skip_special_tokens: bool) -> None:
        """Start with nothing; a token that is skipped takes no place in the text."""
        super().__init__(tokenizer, wants_logprobs=wants_logprobs)
        self._skip_special_tokens = skip_special_tokens
        self._offsets, self._num_characters = list[int](), 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def _take_text(self, piece: Response) -> list[dict[str, Any]]:
        entries = piece.logprobs or []
        self.text += piece.text
        told = self._tell(entries, self._place(entries))
        says: list[dict[str, Any]] = [{"text": piece.text, "logprobs": told}] if piece.text or told else []
        return [*says, {"text": "", "finish_reason": self.finish_reason}] if self.finish_reason else says

    def whole(self) -> dict[str, Any]:
        """See `Choice.whole`."""
        told = self._tell(self._logprobs, self._offsets)
        return {"text": self.text, "logprobs": told, "finish_reason": self.finish_reason}

    def _place(self, entries: Sequence[TokenLogprob]) -> list[int]:
        """Where in the text the newest tokens begin; one that goes on with a character, where that begins."""
        assert self._tokenizer is not None
        num_placed = len(self._offsets)
        for entry in entries:
            self._offsets.append(self._num_characters)
            shown = self._tokenizer.token_bytes(entry.token_id, self._skip_special_tokens)
            self._num_characters += len(self._utf8.decode(shown))
        return self._offsets[num_placed:]

    def _tell(self, entries: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, Any] | None:
        if not self.wants_logprobs or not entries:
            return None
        tokens = [self._describe(entry.token_id, entry.logprob) for entry in entries]
        tops = [[self._describe(*pair) for pair in entry.top] for entry in entries]
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{token["token"]: token["logprob"] for token in top} for top in tops],
            "text_offset": list(offsets),
        }


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
    stream = await open_stream(request, body)
    tokenizer = service_of(request).engine.builder.tokenizer
    options = {"wants_logprobs": body.logprobs, "has_tools": body.has_tools}
    choices = [ChatChoice(tokenizer, **options) for _ in range(body.n)]
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    return await _answer(body, stream, choices, "chatcmpl", kind)


async def create_completion(request: Request, body: CompletionRequest) -> HttpResponse:
    """Go on from a text."""
    stream = await open_stream(request, body)
    tokenizer = service_of(request).engine.builder.tokenizer
    options = {"wants_logprobs": body.logprobs is not None, "skip_special_tokens": body.skip_special_tokens}
    choices = [TextChoice(tokenizer, **options) for _ in range(body.n)]
    return await _answer(body, stream, choices, "cmpl", "text_completion")


async def open_stream(request: Request, body: ChatRequest | CompletionRequest | ResponsesRequest) -> Stream:
    """Ask the engine for the answers to a body."""
    service = service_of(request)
    service.check_model(body.model)
    session_len = service.engine.builder.session_len
    generation = await asyncio.to_thread(body.generation, session_len)  # a schema in it may be large
    is_raw = isinstance(body, CompletionRequest)
    _check_num_logprobs(generation, session_len, "logprobs" if is_raw else "top_logprobs")
    what, namespace = body.conversation, request.state.namespace
    return await service.engine.open(what, generation, namespace, is_raw=is_raw, is_streamed=body.stream)


def _check_num_logprobs(generation: GenerationConfig, session_len: int, name: str) -> None:
    num_tokens, num_likely = min(generation.max_new_tokens, session_len), generation.logprobs
    number = 0 if num_likely is None else generation.n * num_tokens * (1 + num_likely)
    if number > MAX_LOGPROBS:
        raise InputError(
            f"n={generation.n}, {name}={num_likely} and max_tokens={num_tokens} make {number} logprobs; at most "
            f"{MAX_LOGPROBS} are allowed. Lower n, {name} or max_tokens.",
            param=name,
        )


async def _answer(body: Sampling, stream: Stream, choices: Sequence[Choice], name: str, kind: str) -> HttpResponse:
    head = {"id": f"{name}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.model}
    if body.stream:
        return EventStream(stream, _stream_events(body, stream, choices, head))
    with stream:
        async for index, piece in stream:
            choices[index].take(piece)
    # With the most choices and likely tokens that may be asked for it takes seconds.
    if choices[0].wants_logprobs:
        data = await asyncio.to_thread(_encode_whole, choices, head)
    else:
        data = _encode_whole(choices, head)
    return HttpResponse(data, media_type="application/json")


def _encode_whole(choices: Sequence[Choice], head: dict[str, Any]) -> bytes:
    """Encode choice by choice: no other thread runs while the encoder does."""
    entries = [orjson.dumps({"index": index, **choice.whole()}) for index, choice in enumerate(choices)]
    start, end = orjson.dumps({**head, "choices": [0], "usage": _count(choices)}).rsplit(b"[0]", 1)
    return b"%b[%b]%b" % (start, b",".join(entries), end)


async def _stream_events(
    body: Sampling, stream: Stream, choices: Sequence[Choice], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    # What every event of this stream begins and ends with is encoded once.
    start, end = encode_event({**head, "choices": [0], **({"usage": None} if wants_usage else {})}).rsplit(b"0", 1)

    def event(index: int, says: dict[str, Any]) -> bytes:
        entry = {"index": index, "logprobs": None, "finish_reason": None, **says}
        return b"%b%b%b" % (start, orjson.dumps(entry), end)

    for index, choice in enumerate(choices):
        for says in choice.opening():
            yield event(index, says)
    async for index, piece in stream:
        for says in choices[index].take(piece):
            yield event(index, says)
    if wants_usage:
        yield encode_event({**head, "choices": [], "usage": _count(choices)})
    yield b"data: [DONE]\n\n"


def _count(choices: Sequence[Choice]) -> dict[str, Any]:
    """Token counts; the prompt that the choices share counts once."""
    prompt, num_new = choices[0].usage, sum(choice.usage.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": num_new,
        "total_tokens": prompt.prompt_tokens + num_new,
        "prompt_tokens_details": {"cached_tokens": prompt.cached_tokens, "image_tokens": prompt.image_tokens},
    }
