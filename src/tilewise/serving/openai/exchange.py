"""One request's exchange: a checked body goes to the engine, its answers come back as one object or as events.

Chat and plain completions share it; they differ in the `Choice` that they hand in.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from tilewise.errors import InputError
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.serving.http.body import held_body_of
from tilewise.serving.http.events import EventStream, encode_event
from tilewise.serving.openai.choices import Choice
from tilewise.serving.openai.schema.sampling import Generating, Sampling
from tilewise.serving.service import service_of
from tilewise.serving.stream import Stream
from tilewise.types import GenerationConfig

# Logprobs of all choices and tokens of one request. An answer as long as a session of 32,768 tokens fits, with 20
# likely ones a token. PERF: they take 450 MiB while they are written, and 3 s (2 cores, 2026-11-28).
MAX_LOGPROBS = 1 << 20


async def open_stream(request: Request, body: Generating) -> Stream:
    """Ask the engine for the answers to a body."""
    service = service_of(request)
    service.check_model(body.model)
    session_len = service.engine.builder.session_len
    generation = await asyncio.to_thread(body.generation, session_len)  # a schema in it may be large
    _check_num_logprobs(generation, session_len, "logprobs" if body.is_raw else "top_logprobs")
    what, namespace = body.conversation, request.state.namespace
    stream = await service.engine.open(what, generation, namespace, is_raw=body.is_raw, is_streamed=body.stream)
    # Its data URLs would be held, and count, until the answer's end.
    del what
    body.drop_conversation()
    held_body_of(request).release()
    return stream


def _check_num_logprobs(generation: GenerationConfig, session_len: int, name: str) -> None:
    num_tokens, num_likely = min(generation.max_new_tokens, session_len), generation.logprobs
    number = 0 if num_likely is None else generation.n * num_tokens * (1 + num_likely)
    if number > MAX_LOGPROBS:
        raise InputError(
            f"n={generation.n}, {name}={num_likely} and max_tokens={num_tokens} make {number} logprobs; at most "
            f"{MAX_LOGPROBS} are allowed. Lower n, {name} or max_tokens.",
            param=name,
        )


async def complete(
    request: Request, body: Sampling, create_choice: Callable[[Tokenizer], Choice], id_prefix: str, kind: str
) -> HttpResponse:
    """Ask for a body's answers, and give them as one object of `kind`, or as its events.

    Args:
        request: What came in; the route that awaits this watches its client.
        body: Checked.
        create_choice: Makes one of the `body.n` answers.
        id_prefix: Begins the answer's id.
        kind: The object's name.
    """
    stream = await open_stream(request, body)
    tokenizer = service_of(request).engine.builder.tokenizer
    choices = [create_choice(tokenizer) for _ in range(body.n)]
    head = {"id": f"{id_prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.model}
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
