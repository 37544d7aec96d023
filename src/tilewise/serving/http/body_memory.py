"""The bodies of all requests together: how much memory they take, and who sends too slowly.

A body's bytes count from when they arrive until its parsed form is dropped; a Content-Length counts nothing. Where
they do not fit, a body that is still arriving gives way: the one that is furthest behind, of those that hold no less
than who asks for more, or that are below the minimum rate. So a few large bodies cannot keep small ones out, nor slow
ones anybody. It knows no HTTP connection: `owner` is whatever its caller wants to find again.
"""

import time
from collections.abc import Callable
from typing import Any, Self

from tilewise.serving.http.errors import RequestError

MAX_BODY_BYTES = 64 << 20
# A body may fall so many seconds behind the minimum rate, and be at most so many ahead of it.
_PATIENCE_S, _MAX_LEAD_S = 20.0, 1.0


class BodyMemory:
    """What bodies under way hold together."""

    def __init__(
        self,
        most_bytes: int = 512 << 20,
        min_bytes_per_s: float = 4096,
        *,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of at most `most_bytes`, each arriving at `min_bytes_per_s` or more, averaged over `patience_s`."""
        self.most_bytes, self.min_bytes_per_s = most_bytes, min_bytes_per_s
        self.patience_s, self.clock = patience_s, clock
        self.num_bytes = 0
        self.arriving: dict[HeldBody, None] = {}  # the oldest first

    def hold(self, owner: Any = None) -> "HeldBody":
        """Begin to count a body whose head has arrived; leaving it gives its bytes back."""
        return HeldBody(self, owner)

    def refuse_slowest(self) -> Any | None:
        """Refuse the body that is furthest below the minimum rate, and return its owner; None where none is."""
        slow = [body for body in self.arriving if body.owner is not None and body.lead_s < 0]
        if not slow:
            return None
        slowest = min(slow, key=lambda body: body.lead_s)
        slowest.refuse(slow_body("and its connection is needed for others"))
        return slowest.owner

    def make_room(self, asker: "HeldBody", num_bytes: int) -> None:
        """Let others give way until `num_bytes` more fit.

        Raises:
            RequestError: 503, nobody else can give way.
        """
        while self.num_bytes + num_bytes > self.most_bytes:
            others = [
                body
                for body in self.arriving
                if body is not asker and (body.num_bytes >= asker.num_bytes + num_bytes or body.lead_s < 0)
            ]
            if not others:
                raise _no_memory()
            min(others, key=lambda body: body.lead_s).refuse(_no_memory())


class HeldBody:
    """One body that is arriving, or whose parsed form is still held."""

    def __init__(self, memory: BodyMemory, owner: Any) -> None:
        """Begin with nothing."""
        self.owner, self.num_bytes = owner, 0
        self.refusal: RequestError | None = None
        self.on_refused: Callable[[], None] | None = None
        self._memory = memory
        self._lead_s, self._counted_at = 0.0, memory.clock()
        memory.arriving[self] = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give its bytes back."""
        self.release()

    @property
    def lead_s(self) -> float:
        """Seconds by which it is ahead of the minimum rate, or behind."""
        return self._lead_s - (self._memory.clock() - self._counted_at)

    @property
    def num_s_left(self) -> float:
        """Seconds until it is too slow, unless more arrives."""
        return self.lead_s + self._memory.patience_s

    def add(self, num_bytes: int) -> None:
        """Count what arrived.

        Raises:
            RequestError: 413 where it never fits, 503 where it does not fit now, 408 where it gave way.
        """
        if self.refusal is not None:
            raise self.refusal
        self.check_size(self.num_bytes + num_bytes)
        memory = self._memory
        self._lead_s = min(self.lead_s + num_bytes / memory.min_bytes_per_s, _MAX_LEAD_S)
        self._counted_at = memory.clock()
        memory.make_room(self, num_bytes)
        self.num_bytes += num_bytes
        memory.num_bytes += num_bytes

    def check_size(self, num_bytes: int) -> None:
        """Refuse a body of so many bytes if it never fits.

        Raises:
            RequestError: 413.
        """
        most = min(MAX_BODY_BYTES, self._memory.most_bytes)
        if num_bytes > most:
            text = f"The body is larger than {most >> 20} MiB; send fewer or smaller pictures, or their URLs."
            raise RequestError(413, "body_too_large", text)

    def end_arrival(self) -> None:
        """It is whole: from now on it gives way to nobody."""
        self._memory.arriving.pop(self, None)
        self.on_refused = None

    def refuse(self, refusal: RequestError) -> None:
        """Make who reads it raise `refusal`; its bytes count no longer."""
        on_refused, self.refusal = self.on_refused, refusal
        self.release()
        if on_refused is not None:
            on_refused()

    def release(self) -> None:
        """Give its bytes back: its parsed form is dropped, or about to be."""
        self.end_arrival()
        self._memory.num_bytes -= self.num_bytes
        self.num_bytes = 0


def slow_body(what: str) -> RequestError:
    """The refusal of a body below the minimum rate."""
    text = f"The request's body arrived too slowly, {what}; send it faster, or again later."
    return RequestError(408, "timeout", text)


def _no_memory() -> RequestError:
    text = "The bodies under way take all the memory that they may; try again later, or send smaller pictures."
    return RequestError(503, "bodies_full", text)
