"""Answers that are sent while they grow: server-sent events, given up when the client leaves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tilewise.errors import TilewiseError
from tilewise.serving.http.errors import FAULT, error_facts

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PACKET_BYTES = 64 << 10


class EventSource(AbstractContextManager["EventSource"], Protocol):
    """What events are made of; leaving it gives up what is not made yet."""

    @property
    def is_read(self) -> bool:
        """The reader has all there is."""
        ...


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
        del (
            task,
            watch,
        )  # NOTE: an error's frames hold it in a ring otherwise, and with it a body, until Python collects


class EventStream(Response):
    """Server-sent events as they come; after the first byte an error is an event of its own, and the last."""

    def __init__(self, source: EventSource, events: AsyncIterator[bytes]) -> None:
        """`events` are made of `source`, which is closed however this ends."""
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, "text/event-stream")
        del self.headers["content-length"]
        self._source, self._events = source, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client has left."""
        # A comment, which may be sent between any two messages and means nothing.
        scope.setdefault("state", {})["filler"] = b":\n\n"
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
            told = error if isinstance(error, TilewiseError) else FAULT
            unsent += encode_event(error_facts(told), "error")
        await send({"type": "http.response.body", "body": bytes(unsent), "more_body": False})


def encode_event(data: Any, name: str = "") -> bytes:
    """One server-sent event with JSON data."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, orjson.dumps(data))
