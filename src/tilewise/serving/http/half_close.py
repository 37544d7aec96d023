"""A client that has ended its sending side: does it wait for its answer, or has it left?

Both look alike: an end of what it sends. So the server writes something harmless at once, which the system of a client
that has left answers by a reset, and looks for that reset. An interim response is written twice at most, since some
clients bound how many they accept; comments of an event stream are written as often as the reset is looked for.
"""

import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_INTERIM_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MOST_INTERIM = 3  # some clients take five at most


@dataclass(frozen=True, slots=True)
class PresenceLimits:
    """When the server looks whether a half-closed client is still there, in seconds.

    It looks after `first_look_s`, then after twice as long each time, up to `longest_look_s`. Interim responses are
    written at once and each `probe_s` after, three in all: behind a proxy that copies bytes, the first one resets the
    proxy's side of the client, the second ends ours of the proxy, and the third tells.
    """

    first_look_s: float = 0.05
    longest_look_s: float = 0.4
    probe_s: float = 1.0


class HalfClosedClient:
    """The client of one connection, from when it ended its side until its connection is closed."""

    def __init__(self, protocol: H11Protocol, limits: PresenceLimits, on_left: Callable[[], None]) -> None:
        """Probe it at once; `on_left` is called once it has left."""
        self._protocol, self._limits, self._on_left = protocol, limits, on_left
        self._loop = protocol.loop
        self._wait_s = limits.first_look_s
        self._started_at = self._loop.time()
        self._num_interim = 0
        self._probe()
        self._timer = self._loop.call_later(self._wait_s, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        transport = self._protocol.transport
        if transport.is_closing():
            return
        if has_reset(transport.get_extra_info("socket")):
            self._on_left()
            return
        self._probe()
        self._wait_s = min(2 * self._wait_s, self._limits.longest_look_s)
        self._timer = self._loop.call_later(self._wait_s, self._look)

    def _probe(self) -> None:
        cycle = self._protocol.cycle
        if cycle.response_complete:
            return
        if cycle.response_started:
            self._write_filler(cycle.scope.get("state", {}).get("filler"))
        elif self._is_probe_due():
            self._num_interim += 1
            self._protocol.transport.write(_INTERIM_RESPONSE)

    def _is_probe_due(self) -> bool:
        due_at = self._started_at + self._num_interim * self._limits.probe_s
        return self._num_interim < _MOST_INTERIM and self._loop.time() >= due_at

    def _write_filler(self, filler: bytes | None) -> None:
        """Write what the route names as meaning nothing amid its answer, if it names anything."""
        if filler is None:
            return
        self._protocol.transport.write(self._protocol.conn.send(h11.Data(data=filler)))


def has_reset(socket: Any) -> bool:
    """Tell whether the other side has reset a connection; asyncio does not look while it does not read."""
    poll = select.poll()
    poll.register(socket, 0)  # errors and hang-ups are reported without being asked for
    return bool(poll.poll(0))
