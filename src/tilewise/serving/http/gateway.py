"""What stands between a socket and a route: keys, limits, request ids, bodies, event streams.

`Door` is plain ASGI and decides on `scope["path"]` alone, before any routing: whatever is not public needs a key, or,
where there are none, a Host that no other site can have made point here.
It logs every request once. Errors leave here in OpenAI's envelope, without internals.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.errors import ImageTooLargeError, PromptTooLongError, TilewiseError
from tilewise.serving.async_engine import Stream
from tilewise.serving.http.hosts import is_rebound

access_log = logging.getLogger("tilewise.access")
logger = logging.getLogger(__name__)

T = TypeVar("T")
PUBLIC_PATHS = frozenset({"/health", "/ready"})
MAX_BODY_BYTES = 64 << 20
# A list of a hundred thousand numbers takes the parser tens of milliseconds; no prompt has so many parts.
MAX_BODY_ITEMS = 200_000
MAX_JSON_DEPTH = 64
# PERF: while it runs the parser holds up every thread, 1.6 ms a megabyte: /health waited up to 160 ms for 60 MB,
# and now waits 18 (2 cores, 2026-11-28). So pictures are parsed one by one, and of the rest no more is read than could
# be text of the longest session.
MAX_TEXT_BYTES = 8 << 20
# A picture of the most bytes in base64, with what some JSON writers escape in it.
MAX_DATA_URL_BYTES = 32 << 20
_LONG_URL_BYTES, _STRIDE, _MAX_LOOKS = 64 << 10, 1 << 20, 1000
_MAX_HEADERS, _MAX_HEADER_BYTES = 100, 32 << 10
_BODY_TIMEOUT_S = 120.0
_INLINE_BYTES = 32 << 10
_PACKET_BYTES = 64 << 10
_CLIENT_LEFT = 499
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}


# What a client is told of a fault of ours.
_FAULT = TilewiseError("The server failed on this request; its log says why.")


class RequestError(TilewiseError):
    """A request that HTTP itself, or its form, rules out."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        """Of this status and code."""
        super().__init__(message, param=param)
        self.status, self.code = status, code


def error_facts(error: TilewiseError) -> dict[str, dict[str, str | None]]:
    """The envelope of an error."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response by orjson."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_response(error: TilewiseError, headers: dict[str, str] | None = None) -> Response:
    """An error's response; one that may pass says when to come back, and one that lacks a key, where that goes."""
    return json_response(error_facts(error), error.status, {**_HEADERS.get(error.status, {}), **(headers or {})})


class Door:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...] = ()) -> None:
        """Without keys everybody may come in."""
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = time.perf_counter(), 0
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_sane = len(given) == 1 and _SANE_ID.fullmatch(given[0]) is not None
        request_id = given[0].decode() if is_sane else uuid.uuid4().hex

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refuse(scope)
            await (error_response(refusal) if refusal else self._app)(scope, receive, send_named)
        except (ClientDisconnect, OSError):
            status = _CLIENT_LEFT
        except Exception:
            logger.exception("request %s failed", request_id)
            if not status:
                await error_response(_FAULT)(scope, receive, send_named)
        finally:
            facts = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status or _CLIENT_LEFT,
                "duration_s": round(time.perf_counter() - started_at, 4),
            }
            access_log.info("%(method)s %(path)r %(status)s in %(duration_s).3f s, %(request_id)s", facts)

    def _refuse(self, scope: Scope) -> RequestError | None:
        """Why a request may not come in; of one that may, whose cache it uses is noted."""
        headers = cast(list[tuple[bytes, bytes]], scope["headers"])
        if len(headers) > _MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > _MAX_HEADER_BYTES:
            return RequestError(431, "headers_too_large", "The request's headers are too large.")
        state = scope.setdefault("state", {})
        state["namespace"] = ""
        if scope["path"] in PUBLIC_PATHS:
            return None
        if state.get("is_full"):
            text = "All connections of this server are busy; try again later."
            return RequestError(503, "too_many_connections", text)
        if not self._digests:
            if is_rebound(scope):
                text = "Without API keys only this machine's own names are answered; call it localhost, or set keys."
                return RequestError(421, "unknown_host", text)
            return None
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip()).digest()
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            return RequestError(401, "invalid_api_key", "Send a valid key: 'Authorization: Bearer KEY'.")
        state["namespace"] = digest.hex()[:32]
        return None


async def read_json(request: Request, check: Callable[[Any], T]) -> T:
    """Read a body within the limits, parse it and `check` it; what takes time is done off the loop.

    Raises:
        TilewiseError: the body is too large, too slow or no JSON, or `check` refuses it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # NOTE: also keeps other sites' forms out, which need no leave to send text
        raise RequestError(415, "unsupported_media_type", "Send the body as 'Content-Type: application/json'.")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            _check_size(int(request.headers.get("content-length", "0")))
            async for chunk in request.stream():
                body += chunk
                _check_size(len(body))
    except TimeoutError:
        raise RequestError(408, "timeout", "The request's body did not arrive in time.") from None
    if len(body) <= _INLINE_BYTES:
        return check(parse_json(body))
    return await asyncio.to_thread(lambda: check(parse_json(body)))


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        text = f"The body is larger than {MAX_BODY_BYTES >> 20} MiB; send fewer or smaller pictures, or their URLs."
        raise RequestError(413, "body_too_large", text)


def parse_json(body: bytes | bytearray) -> Any:
    """Parse JSON of bounded size and depth; NaN and infinities are none.

    Raises:
        RequestError: it is not that.
        InputError: a picture or all the rest is too large.
    """
    urls: dict[str, str] = {}
    try:
        if len(body) > _LONG_URL_BYTES:
            body, urls = _cut_urls(body)
        num_open = body.count(b"{") + body.count(b"[")
        if num_open + body.count(b",") > MAX_BODY_ITEMS:
            raise RequestError(400, "too_many_items", f"The body holds more than {MAX_BODY_ITEMS} values.")
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, "invalid_json", f"The body is no valid JSON: {error.msg} at {error.pos}.") from None
    if num_open > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise RequestError(400, "too_deep", f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
    return _put_back(value, urls) if urls else value


def _cut_urls(body: bytes | bytearray) -> tuple[bytes, dict[str, str]]:
    """A body whose long data URLs are names, which no client can guess, and what they stand for."""
    salt, view = secrets.token_hex(8), memoryview(body)
    kept, urls, done, looks = list[bytes | memoryview](), dict[str, str](), 0, 0
    start = _find(body, b'"data:', 0)
    while start >= 0 and looks < _MAX_LOOKS and (end := _find(body, b'"', start + 1)) >= 0:
        # Neither quote is one inside a text: then the first opens a string, or this is no JSON with or without a name.
        is_whole = body[start - 1 : start] != b"\\" and body[end - 1 : end] != b"\\"
        if is_whole and end - start > MAX_DATA_URL_BYTES:
            raise ImageTooLargeError(
                f"A data URL has {end - start} bytes; at most {MAX_DATA_URL_BYTES} are allowed. Scale the picture down."
            )
        if is_whole and end - start > _LONG_URL_BYTES:
            name = f"data:{salt}{len(urls)}"
            urls[name] = orjson.loads(view[start : end + 1])
            kept += [view[done : start + 1], name.encode()]
            done = end
        start, looks = _find(body, b'"data:', end), looks + 1
    kept.append(view[done:])
    num_bytes = sum(map(len, kept))
    if num_bytes > MAX_TEXT_BYTES:
        raise PromptTooLongError(
            f"The body has {num_bytes} bytes beside its pictures, more than any session holds; at most "
            f"{MAX_TEXT_BYTES} are read. Shorten the text, and send pictures as URLs, or as data URLs in base64."
        )
    return b"".join(kept), urls


def _find(body: bytes | bytearray, what: bytes, start: int) -> int:
    """Like `find`, in strides between which other threads may run."""
    for begin in range(start, len(body), _STRIDE):
        place = body.find(what, begin, begin + _STRIDE + len(what) - 1)
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


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it if the client leaves first.

    Raises:
        ClientDisconnect: it left.
    """

    async def wait_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(wait_gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Server-sent events as they come; after the first byte an error is an event of its own, and the last."""

    def __init__(self, source: Stream, events: AsyncIterator[bytes]) -> None:
        """`events` are made of `source`, which is closed however this ends."""
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, "text/event-stream")
        del self.headers["content-length"]
        self._source, self._events = source, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client has left."""
        with self._source:
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        unsent = bytearray()
        try:
            async for event in self._events:
                unsent += event
                # Where the loop or the reader is behind, one packet takes what has gathered.
                if (is_done := self._source.is_read) or len(unsent) >= _PACKET_BYTES:
                    await send({"type": "http.response.body", "body": bytes(unsent), "more_body": True})
                    unsent.clear()
                    if not is_done:
                        await asyncio.sleep(0)  # neither the next piece nor the socket makes others' turn come
        except OSError:  # the client's end, not ours
            raise
        except Exception as error:
            if not isinstance(error, TilewiseError):
                logger.exception("a stream failed")
            told = error if isinstance(error, TilewiseError) else _FAULT
            unsent += encode_event(error_facts(told), "error")
        await send({"type": "http.response.body", "body": bytes(unsent), "more_body": False})


def encode_event(data: Any, name: str = "") -> bytes:
    """One server-sent event with JSON data."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, orjson.dumps(data))
