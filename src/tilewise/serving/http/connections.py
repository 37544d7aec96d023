"""One connection beside its answers: how long it may take, idle, send or linger, and what becomes of bytes refused.

What `request_stream` refuses is answered here, and closed. A client that is answered while it still sends may read its
answer (`linger`); one that has ended its own side gets its answer, too (`half_close`). How many connections there are,
and which gives its place to another, is in `places`.
"""

import asyncio
import functools
import resource
import ssl
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tilewise.errors import ConfigError
from tilewise.serving.http.body_memory import BodyMemory, HeldBody
from tilewise.serving.http.errors import RequestError, error_bytes
from tilewise.serving.http.gateway import PUBLIC_PATHS, create_request_id, log_refusal
from tilewise.serving.http.half_close import HalfClosedClient, PresenceLimits
from tilewise.serving.http.linger import LingeringTransport, LingerLimits
from tilewise.serving.http.places import Places
from tilewise.serving.http.request_stream import RequestStream

# Of requests that were sent before the answer to an earlier one.
_MOST_UNREAD_BYTES = 64 << 10
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
    presence: PresenceLimits = field(default_factory=PresenceLimits)
    linger: LingerLimits = field(default_factory=LingerLimits)


_DEFAULT_LIMITS = ConnectionLimits()


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
        self, *, places: Places, tls: ssl.SSLContext | None, limits: ConnectionLimits, **of_uvicorn: Any
    ) -> None:
        """In one of `places`; with `tls`, https."""
        super().__init__(**of_uvicorn)
        self._places, self._tls, self._limits = places, tls, limits
        self._link: asyncio.Transport  # below TLS
        self._lingering: LingeringTransport | None = None  # above TLS; None before there is any
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._half_closed: HalfClosedClient | None = None
        self._is_malformed = self._is_leaving = False
        self._stream = RequestStream()
        self._body: HeldBody | None = None  # of the request under way, or of the last one

    def drop(self) -> None:
        """End the connection now; what is unsent is lost."""
        self._link.abort()

    def finish(self) -> None:
        """End the connection once what was written has gone out."""
        if self._lingering is not None:
            self._lingering.finish()

    def mark_leaving(self) -> None:
        """Let the answer under way be the last."""
        self._is_leaving = True

    @property
    def is_lingering(self) -> bool:
        """It has its last answer, and may still send."""
        return self._lingering is not None and self._lingering.is_lingering

    def shutdown(self) -> None:
        """Let the answer under way be the last, and wait for no client after it; the server ends."""
        if self._lingering is not None:
            self._lingering.may_linger = False
        if self.is_lingering:
            self.finish()
        else:
            super().shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._link = transport
        if not self._places.add(self):
            self.drop()
            return
        self._wait(self._limits.headers_timeout_s)
        if self._tls is None:
            self._begin(transport)
        else:
            self._handshake = self.loop.create_task(self._start_tls(self._tls))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._forget()
        if self.flow is not None:  # pyright: ignore[reportUnnecessaryComparison]  # uvicorn has it from the first byte
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; after the last request of a connection it is dropped."""
        if self._lingering is not None and self._lingering.is_lingering:
            self._lingering.discard(len(data))
            self._places.leave(self)
        elif self.conn.their_state is not h11.MUST_CLOSE:
            self._unset_keepalive_if_required()
            self._stream.add(data)
            self.handle_events()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a connection whose client has sent all it wants to send, until it has its answer.

        A client of HTTP/1.0 takes no interim response, so that nothing would tell whether it has left: it is taken to
        have left. Over TLS asyncio closes the connection, and warns where the protocol wants to keep it.
        """
        if self._tls is not None or not self._can_be_half_closed():
            return False
        if self._half_closed is None:
            self._half_closed = HalfClosedClient(self, self._limits.presence, on_left=self.drop)
        return True

    def handle_events(self) -> None:
        """Give h11 what has come of one request; its head ends the wait for it."""
        if self.conn.their_state is h11.IDLE and self._stream.is_whole:
            self._stream.begin()
        try:
            piece = self._stream.read()
            while piece and not self._is_malformed:
                self._parse(piece)
                piece = self._stream.read()
        except RequestError as error:
            self._refuse(error)
            return
        if self._half_closed is not None and self.cycle.more_body:
            self.transport.close()  # the rest of this request will not come
            return
        if self._body is not None and not self._is_sending:
            self._body.end_arrival()
        if self._stream.is_whole and not self._is_malformed:
            self._bound_unread()

    def _parse(self, piece: bytes) -> None:
        before = self.cycle
        self.conn.receive_data(piece)
        super().handle_events()
        if self.cycle is not before:
            self._wait(None)
            is_full, self._body = self._places.begin(self, is_public=self.cycle.scope["path"] in PUBLIC_PATHS)
            facts = {"is_full": is_full, "body": self._body, "is_sending": lambda: self._is_sending}
            self.cycle.scope.setdefault("state", {}).update(facts)

    def _bound_unread(self) -> None:
        """Read on while a request is answered, since only who reads learns that a client has left."""
        if self._stream.num_unread > _MOST_UNREAD_BYTES:
            self.flow.pause_reading()
        else:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 refuses: a head without a Host, or a chunk that is none."""
        self._refuse(RequestError(400, "malformed_request", "The request is no valid HTTP/1.1."))

    def on_response_complete(self) -> None:
        """An answer has gone out; unless the next request is there already, the wait for it begins."""
        if self._body is not None:
            self._body.end_arrival()
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        if self._is_sending or self._half_closed is not None:
            self.transport.close()
        else:
            self._places.mark_idle(self)
            self._wait(self.timeout_keep_alive + self._limits.headers_timeout_s)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def _await_reading(self) -> None:
        """Give the client some time to read at least a part of what is unsent, and then for the rest again."""
        unsent = self._count_unsent()
        self._stall = self.loop.call_later(self._limits.stalled_timeout_s, self._end_stall, unsent)

    def _end_stall(self, unsent: int) -> None:
        if self._has_read(unsent):
            self._await_reading()
        else:
            self.drop()

    def _has_read(self, unsent: int) -> bool:
        """Whether less is unsent than before, and still something."""
        return 0 < self._count_unsent() < unsent

    def _count_unsent(self) -> int:
        return self._link.get_write_buffer_size()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    @property
    def _is_sending(self) -> bool:
        """The client may be amid a body, or amid what is no request, or was when it had to give way."""
        if self._half_closed is not None:
            return False
        if self._is_malformed or self._is_leaving:
            return True
        return self.cycle is not None and self.cycle.more_body  # pyright: ignore[reportUnnecessaryComparison]

    def _begin(self, transport: asyncio.Transport) -> None:
        self._lingering = LingeringTransport(transport, self._limits.linger, lambda: self._is_sending, self._linger)
        super().connection_made(self._lingering)

    def _linger(self) -> None:
        self._wait(None)
        self._places.leave(self)

    def _refuse(self, error: RequestError) -> None:
        """Answer what never becomes a request, or not to its end, and close."""
        self._is_malformed = True
        if self._is_answering:
            self._refuse_rest(error)
        else:
            request_id = create_request_id()
            self.transport.write(error_bytes(error, request_id))
            self.server_state.total_requests += 1
            log_refusal(request_id, self._stream.first_line, error.status, self.client)
        self.transport.close()

    def _refuse_rest(self, error: RequestError) -> None:
        """Refuse a request amid its body, as where a connection is lost: its route learns that no more comes."""
        state = self.cycle.scope.setdefault("state", {})
        if not self.cycle.response_started:
            request_id = state.setdefault("request_id", create_request_id())
            state["refused_status"] = error.status
            self.transport.write(error_bytes(error, request_id))
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _can_be_half_closed(self) -> bool:
        """Tell whether a request is whole and its answer can be probed."""
        if not self._is_answering or self.cycle.more_body:
            return False
        return self.cycle.response_started or self.cycle.scope["http_version"] == "1.1"

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
        self._begin(transport)
        if shake.data:
            self.data_received(bytes(shake.data))

    def _wait(self, seconds: float | None) -> None:
        """Give the client this long from now; None for as long as it takes."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._end_wait, self._count_unsent())

    def _end_wait(self, unsent: int) -> None:
        if self._has_read(unsent):  # an answer is still on its way
            self._wait(self._limits.stalled_timeout_s)
        else:
            self.drop()

    def _forget(self) -> None:
        self._wait(None)
        if self._stall is not None:
            self._stall.cancel()
        if self._half_closed is not None:
            self._half_closed.stop()
        if self._lingering is not None:
            self._lingering.forget()
        if self._body is not None:
            self._body.end_arrival()
        self._places.remove(self)


def create_protocol(
    most: int,
    tls: ssl.SSLContext | None = None,
    limits: ConnectionLimits = _DEFAULT_LIMITS,
    body_memory: BodyMemory | None = None,
) -> Any:
    """What uvicorn takes as `http`: `most` connections at once. Leave uvicorn's own TLS options unset.

    A route finds what counts its body, out of `body_memory`, as `body` in the request's state.

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
    places = Places(most, body_memory or BodyMemory())
    return functools.partial(BoundedProtocol, places=places, tls=tls, limits=limits)
