"""How many connections are open, and which gives its place to another.

uvicorn's own `limit_concurrency` turns /health away too, counts nobody who has not sent a request, and leaves such a
one connected for ever. Here the number of open connections is bounded, TLS handshakes included. Where all are taken, a
newcomer takes the place of the one that has waited longest without a request, or of one whose body comes too slowly.
The last places serve /health and /ready alone: `is_full` in a request's state tells the gateway so.
"""

import logging
from typing import Protocol

from tilewise.serving.http.body_memory import BodyMemory, HeldBody

logger = logging.getLogger(__name__)

_NUM_KEPT = 8
# Connections that have their last answer, or are about to, beside those that count.
_MOST_LEAVING = 64


class Connection(Protocol):
    """What the places know of a connection."""

    @property
    def is_lingering(self) -> bool:
        """It has its last answer, and may still send."""
        ...

    def drop(self) -> None:
        """End it now; what is unsent is lost."""

    def finish(self) -> None:
        """End it once what was written has gone out."""

    def mark_leaving(self) -> None:
        """Let the answer under way be the last."""


class Places:
    """Who is connected, and who of them waits for no answer."""

    def __init__(self, most: int, body_memory: BodyMemory) -> None:
        """Of at most `most`; `body_memory` knows whose body comes too slowly."""
        self._most, self._body_memory = most, body_memory
        self._leaving: dict[Connection, None] = {}  # the longest silent first
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # the longest idle first
        self._is_warned = False

    def add(self, newcomer: Connection) -> bool:
        """Let somebody in who has no request yet; False where everybody else is busy."""
        if len(self._open) >= self._most:
            oldest = next(iter(self._idle), None)
            if oldest is not None:
                self.remove(oldest)
                oldest.drop()
            elif not self._give_way():
                return False
        self._open.add(newcomer)
        self._idle[newcomer] = None
        return True

    def begin(self, connection: Connection, *, is_public: bool) -> tuple[bool, HeldBody]:
        """A request has come; whether only /health and /ready may still be answered, and what counts its body.

        For one of those, which have places of their own, nobody gives way.
        """
        self._idle.pop(connection, None)
        most_busy = self._most - _NUM_KEPT
        if self._num_busy > most_busy and not is_public:
            self._give_way()
        num_busy = self._num_busy
        is_full = num_busy > most_busy
        if is_full and not self._is_warned:
            logger.warning("%d of %d connections are busy; raise --max-connections", num_busy, self._most)
        self._is_warned = is_full or (self._is_warned and num_busy > self._most // 2)
        return is_full, self._body_memory.hold(connection)

    def mark_idle(self, connection: Connection) -> None:
        """The answer has gone out."""
        if connection in self._open:
            self._idle[connection] = None

    def leave(self, connection: Connection) -> None:
        """It gets its last answer, or still sends after that, and counts no longer; of too many such one is ended."""
        self.remove(connection)
        self._leaving[connection] = None
        if len(self._leaving) > _MOST_LEAVING:
            self._end_longest_silent()

    def remove(self, connection: Connection) -> None:
        """It has gone, or is about to."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._leaving.pop(connection, None)

    @property
    def _num_busy(self) -> int:
        return len(self._open) - len(self._idle)

    def _give_way(self) -> bool:
        """Take the place of the connection whose body is furthest below the minimum rate; False where none is."""
        slowest = self._body_memory.refuse_slowest()
        if slowest is None:
            return False
        slowest.mark_leaving()
        self.leave(slowest)
        return True

    def _end_longest_silent(self) -> None:
        """End who was answered, since it may have read that; if nobody was, who began to leave first."""
        answered = [connection for connection in self._leaving if connection.is_lingering]
        ended = answered[0] if answered else next(iter(self._leaving))
        self.remove(ended)
        ended.finish()
