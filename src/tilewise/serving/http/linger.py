"""Closing a connection whose client still sends, so that it can read its answer first.

To close a socket that holds unread bytes resets it, and a reset takes along an answer that the client has not read
yet. So the writing side ends alone, and what still comes is read and dropped, for a bounded time.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LingerLimits:
    """How long a client that was answered may still send: in seconds together and between two reads, and in bytes.

    One that has stopped reading what is unsent is dropped after `stalled_s`.
    """

    total_s: float = 30.0
    silence_s: float = 5.0
    stalled_s: float = 60.0
    num_bytes: int = 256 << 20


class LingeringTransport(asyncio.Transport):
    """A connection's transport whose `close` waits for a client that still sends.

    Over TLS asyncio cannot end one side alone. There the client learns from its answer that it is the last, and has
    the same time to stop.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        limits: LingerLimits,
        is_sending: Callable[[], bool],
        on_linger: Callable[[], None],
    ) -> None:
        """Around `transport`; `on_linger` is called when a close has to wait."""
        super().__init__()
        self._transport, self._limits = transport, limits
        self._is_sending, self._on_linger = is_sending, on_linger
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._ends_at, self._num_left = 0.0, limits.num_bytes
        self.is_lingering = False
        self.may_linger = True  # until the server ends

    def close(self) -> None:
        """End the connection; where the client still sends, its own side stays open until it has read the answer."""
        has_closed = self.is_lingering or self._transport.is_closing()
        if has_closed or not self.may_linger or not self._is_sending():
            self.finish()
            return
        self.is_lingering = True
        self._ends_at = self._loop.time() + self._limits.total_s
        if self._transport.can_write_eof():
            with suppress(OSError):  # the client has reset it
                self._transport.write_eof()
        self._transport.resume_reading()
        self._wait()
        self._on_linger()

    def discard(self, num_bytes: int) -> None:
        """Count what came after the answer; too much, and the connection ends."""
        self._num_left -= num_bytes
        if self._num_left < 0:
            self.finish()
        else:
            self._wait()

    def finish(self) -> None:
        """End the connection without waiting for the client to send; what is unsent it may still read."""
        if self._transport.is_closing():  # QUIRK: closed twice, asyncio's TLS transport has no buffer to look at
            return
        self.forget()
        self._transport.close()
        self._await_reading()

    def _await_reading(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            self._timer = self._loop.call_later(self._limits.stalled_s, self._end_flush, unsent)

    def _end_flush(self, unsent: int) -> None:
        if self._transport.get_write_buffer_size() < unsent:
            self._await_reading()
        else:
            self._transport.abort()

    def forget(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self.forget()
        ends_at = min(self._ends_at, self._loop.time() + self._limits.silence_s)
        self._timer = self._loop.call_at(ends_at, self.finish)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport`; after `close`, nothing is written."""
        if not self.is_lingering:
            self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport`."""
        return self._transport.get_write_buffer_size()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self.is_lingering or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport`."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`; what comes after the answer is always read."""
        if not self.is_lingering:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._transport.resume_reading()
