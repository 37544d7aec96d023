"""What a connection may cost before and between requests: how many are open, and how long one may take or idle.

uvicorn's own `limit_concurrency` turns /health away too, counts nobody who has not sent a request, and leaves such a
one connected for ever. Here the number of open connections is bounded, TLS handshakes included. Where all are taken, a
newcomer takes the place of the one that has waited longest without a request. The last places serve /health and /ready
alone: `is_full` in a request's state tells the gateway so.
"""

import asyncio
import functools
import logging
import resource
import ssl
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from tilewise.errors import ConfigError

logger = logging.getLogger(__name__)

_NUM_KEPT = 8
# Pictures' hosts, decoders, the engine's sockets, logs.
_OTHER_DESCRIPTORS = 256


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long the server waits for a client, in seconds.

    `headers_timeout_s` covers the TLS handshake and the headers; bytes that arrive one by one do not prolong it.
    `stalled_timeout_s` starts when the client stops reading an answer.
    """

    headers_timeout_s: float = 10.0
    stalled_timeout_s: float = 60.0


_DEFAULT_LIMITS = ConnectionLimits()


class Connections:
    """Who is connected, and who of them waits for no answer."""

    def __init__(self, most: int) -> None:
        """Of at most `most`."""
        self._most = most
        self._open: set[BoundedProtocol] = set()
        self._idle: dict[BoundedProtocol, None] = {}  # the longest idle first
        self._is_told = False

    def add(self, newcomer: "BoundedProtocol") -> bool:
        """Let somebody in who has no request yet; False where everybody else is busy."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            self.remove(oldest)
            oldest.drop()
        self._open.add(newcomer)
        self._idle[newcomer] = None
        return True

    def begin(self, protocol: "BoundedProtocol") -> bool:
        """A request has come; whether only /health and /ready may still be answered."""
        self._idle.pop(protocol, None)
        num_busy = len(self._open) - len(self._idle)
        is_full = num_busy > self._most - _NUM_KEPT
        if is_full and not self._is_told:
            logger.warning("%d of %d connections are busy; raise --max-connections", num_busy, self._most)
        self._is_told = is_full or (self._is_told and num_busy > self._most // 2)
        return is_full

    def rest(self, protocol: "BoundedProtocol") -> None:
        """The answer has gone out."""
        if protocol in self._open:
            self._idle[protocol] = None

    def remove(self, protocol: "BoundedProtocol") -> None:
        """It has gone, or is about to."""
        self._open.discard(protocol)
        self._idle.pop(protocol, None)


class _Handshake(asyncio.Protocol):
    """Stands in until TLS is agreed on; the first request may come with the last of it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP on one connection, with an end to every wait for the client."""

    def __init__(
        self, *, connections: Connections, tls: ssl.SSLContext | None, limits: ConnectionLimits, **of_uvicorn: Any
    ) -> None:
        """One of `connections`; with `tls`, https."""
        super().__init__(**of_uvicorn)
        self._connections, self._tls, self._limits = connections, tls, limits
        self._link: asyncio.Transport  # below TLS
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def drop(self) -> None:
        """End the connection now; what is unsent is lost."""
        self._link.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._link = transport
        if not self._connections.add(self):
            self.drop()
        elif self._tls is None:
            self._wait(self._limits.headers_timeout_s)
            super().connection_made(transport)
        else:
            self._wait(self._limits.headers_timeout_s)
            self._handshake = self.loop.create_task(self._start_tls(self._tls))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._forget()
        if self.flow is not None:  # pyright: ignore[reportUnnecessaryComparison]  # uvicorn has it from the first byte
            super().connection_lost(exc)

    def handle_events(self) -> None:
        """Parse what has come; a request ends the wait for it."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._wait(None)
            self.cycle.scope.setdefault("state", {})["is_full"] = self._connections.begin(self)

    def on_response_complete(self) -> None:
        """An answer has gone out; unless the next request is there already, the wait for it begins."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._connections.rest(self)
            self._wait(self.timeout_keep_alive + self._limits.headers_timeout_s)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._stall = self.loop.call_later(self._limits.stalled_timeout_s, self.drop)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    async def _start_tls(self, tls: ssl.SSLContext) -> None:
        shake = _Handshake()
        try:
            transport = await self.loop.start_tls(
                self._link, shake, tls, server_side=True, ssl_handshake_timeout=self._limits.headers_timeout_s
            )
        except OSError:  # an ssl.SSLError is one
            transport = None
        if transport is None or shake.is_lost:
            self.drop()
            self._forget()
            return
        transport.set_protocol(self)
        super().connection_made(transport)
        if shake.data:
            self.data_received(bytes(shake.data))

    def _wait(self, seconds: float | None) -> None:
        """Give the client this long from now; None for as long as it takes."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.drop)

    def _forget(self) -> None:
        self._wait(None)
        if self._stall is not None:
            self._stall.cancel()
        self._connections.remove(self)


def create_protocol(most: int, tls: ssl.SSLContext | None = None, limits: ConnectionLimits = _DEFAULT_LIMITS) -> Any:
    """What uvicorn takes as `http`: `most` connections at once. Leave uvicorn's own TLS options unset.

    Raises:
        ConfigError: the system does not let this process open so many.
    """
    wanted = most + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:  # beyond it, connections would wait unseen
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            raise ConfigError(
                f"max_connections={most} takes {wanted} open files, and the system allows {hard}; lower "
                "--max-connections, or raise the limit (ulimit -n).",
                param="max_connections",
            ) from None
    return functools.partial(BoundedProtocol, connections=Connections(most), tls=tls, limits=limits)
