"""A request's body: read within limits of bytes and rate, parsed off the event loop, bounded in depth and values."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson
from starlette.requests import Request

from tilewise.errors import ImageTooLargeError, PromptTooLongError
from tilewise.serving.http.body_memory import BodyMemory, HeldBody, slow_body
from tilewise.serving.http.errors import RequestError

T = TypeVar("T")
# A list of a hundred thousand numbers takes the parser tens of milliseconds; no prompt has so many parts.
MAX_BODY_ITEMS = 200_000
MAX_JSON_DEPTH = 64
# PERF: while it runs the parser holds up every thread, 1.6 ms a megabyte: /health waited up to 160 ms for 60 MB,
# and now waits 18 (2 cores, 2026-11-28). So pictures are parsed one by one, and of the rest no more is read than could
# be text of the longest session.
MAX_TEXT_BYTES = 8 << 20
# A picture of the most bytes in base64, with what some JSON writers escape in it.
MAX_DATA_URL_BYTES = 32 << 20
_MAX_LOOKS = 1000
_INLINE_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class PieceSizes:
    """The pieces in which a large body is parsed, in bytes.

    A data URL longer than `long_url` is parsed on its own. URLs are searched for `stride` bytes at a time, and other
    threads may run in between.
    """

    long_url: int = 64 << 10
    stride: int = 1 << 20


_DEFAULT_SIZES = PieceSizes()


def held_body_of(request: Request) -> HeldBody:
    """What counts the body of a request; where no connection of ours gave it one, it is counted alone."""
    state = request.scope["state"]
    if "body" not in state:
        state["body"] = BodyMemory().hold()
    held = cast(HeldBody, state["body"])
    held.namespace = state.get("namespace", "")
    return held


async def read_json(request: Request, check: Callable[[Any], T], held: HeldBody) -> T:
    """Read a body within the limits, parse it and `check` it; what takes time is done off the loop.

    `held` counts its bytes; the caller releases it once the result is dropped.

    Raises:
        TilewiseError: the body is too large, too slow or no JSON, or `check` refuses it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # NOTE: also keeps other sites' forms out, which need no leave to send text
        raise RequestError(415, "unsupported_media_type", "Send the body as 'Content-Type: application/json'.")
    held.check_size(int(request.headers.get("content-length", "0")))
    body = await _read_body(request, held)
    if len(body) <= _INLINE_BYTES:
        return check(parse_json(body))
    return await asyncio.to_thread(lambda: check(parse_json(body)))


def _expire(limit: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # it has expired by itself
        limit.reschedule(asyncio.get_running_loop().time())


async def _read_body(request: Request, held: HeldBody) -> bytearray:
    body, loop = bytearray(), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(held.num_s_left) as limit:
            held.on_refused = lambda: _expire(limit)
            try:
                if held.refusal is not None:
                    raise held.refusal
                async for chunk in request.stream():
                    held.add(len(chunk))
                    body += chunk
                    limit.reschedule(loop.time() + held.num_s_left)
            finally:
                held.end_arrival()
    except BaseException as error:
        body.clear()  # NOTE: error, task and time limit are a ring, which lives until Python collects garbage
        if isinstance(error, TimeoutError):
            raise held.refusal or slow_body("below the least rate that this server waits for") from None
        raise
    return body


def parse_json(body: bytes | bytearray, sizes: PieceSizes = _DEFAULT_SIZES) -> Any:
    """Parse JSON of bounded size and depth; NaN and infinities are none.

    Raises:
        RequestError: it is not that.
        InputError: a picture or all the rest is too large.
    """
    urls: dict[str, str] = {}
    try:
        if len(body) > sizes.long_url:
            body, urls = _cut_urls(body, sizes)
        num_open = body.count(b"{") + body.count(b"[")
        if num_open + body.count(b",") > MAX_BODY_ITEMS:
            raise RequestError(400, "too_many_items", f"The body holds more than {MAX_BODY_ITEMS} values.")
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, "invalid_json", f"The body is no valid JSON: {error.msg} at {error.pos}.") from None
    if num_open > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise RequestError(400, "too_deep", f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
    return _put_back(value, urls) if urls else value


def _cut_urls(body: bytes | bytearray, sizes: PieceSizes) -> tuple[bytes, dict[str, str]]:
    """A body whose long data URLs are names, which no client can guess, and what they stand for."""
    salt, view = secrets.token_hex(8), memoryview(body)
    kept, urls, done, looks = list[bytes | memoryview](), dict[str, str](), 0, 0
    start = _find(body, b'"data:', 0, sizes.stride)
    while start >= 0 and looks < _MAX_LOOKS and (end := _find(body, b'"', start + 1, sizes.stride)) >= 0:
        # Neither quote is one inside a text: then the first opens a string, or this is no JSON with or without a name.
        is_whole = body[start - 1 : start] != b"\\" and body[end - 1 : end] != b"\\"
        if is_whole and end - start > MAX_DATA_URL_BYTES:
            raise ImageTooLargeError(
                f"A data URL has {end - start} bytes; at most {MAX_DATA_URL_BYTES} are allowed. Scale the picture down."
            )
        if is_whole and end - start > sizes.long_url:
            name = f"data:{salt}{len(urls)}"
            urls[name] = orjson.loads(view[start : end + 1])
            kept += [view[done : start + 1], name.encode()]
            done = end
        start, looks = _find(body, b'"data:', end, sizes.stride), looks + 1
    kept.append(view[done:])
    num_bytes = sum(map(len, kept))
    if num_bytes > MAX_TEXT_BYTES:
        raise PromptTooLongError(
            f"The body has {num_bytes} bytes beside its pictures, more than any session holds; at most "
            f"{MAX_TEXT_BYTES} are read. Shorten the text, and send pictures as URLs, or as data URLs in base64."
        )
    return b"".join(kept), urls


def _find(body: bytes | bytearray, what: bytes, start: int, stride: int) -> int:
    """Like `find`, in strides between which other threads may run."""
    for begin in range(start, len(body), stride):
        place = body.find(what, begin, begin + stride + len(what) - 1)
        if place >= 0:
            return place
    return -1


def _put_back(value: Any, urls: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {urls.get(key, key): _put_back(item, urls) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_put_back(item, urls) for item in cast(list[Any], value)]
    return urls.get(value, value) if isinstance(value, str) else value


def _is_deeper(value: Any, num_levels: int) -> bool:
    """Whether lists and objects are nested deeper."""
    if not isinstance(value, (dict, list)):
        return False
    children = cast(dict[str, Any], value).values() if isinstance(value, dict) else cast(list[Any], value)
    return not num_levels or any(_is_deeper(child, num_levels - 1) for child in children)
