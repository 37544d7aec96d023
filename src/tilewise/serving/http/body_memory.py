"""The bodies of all requests together: how much memory they take, and who sends too slowly.

A body's bytes count from when they arrive until its parsed form is dropped; a Content-Length counts nothing. Where
they do not fit, bodies that are still arriving give way, those that are furthest behind the minimum rate first: bodies
that hold no less than who asks for more, or that are slow. Nobody gives way where that would not be enough. Large
bodies leave a part of the memory to small ones, and where there are several API keys, none holds more than it leaves
free. It knows no HTTP connection: `owner` is whatever its caller wants to find again.
"""

import time
from collections.abc import Callable
from typing import Any, Self

from tilewise.room import SharedRoom
from tilewise.serving.http.errors import RequestError

MAX_BODY_BYTES = 64 << 20
# A body may fall so many seconds behind the minimum rate, and be at most so many ahead of it.
_PATIENCE_S, _MAX_LEAD_S = 20.0, 1.0
# A body that is behind by less is on its way: its head came in a packet of its own, or it waits for 100 Continue.
_GRACE_S = 2.0
# An eighth of the memory is left to bodies below a mebibyte.
_RESERVE_SHARE, _SMALL_BYTES = 8, 1 << 20


class BodyMemory:
    """What bodies under way hold together."""

    def __init__(
        self,
        most_bytes: int = 512 << 20,
        min_bytes_per_s: float = 4096,
        *,
        patience_s: float = _PATIENCE_S,
        grace_s: float = _GRACE_S,
        is_shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of at most `most_bytes`, each arriving at `min_bytes_per_s` or more, averaged over `patience_s`.

        A body that is `grace_s` behind that rate is slow: it gives way to others. With `is_shared`, namespaces share
        the memory.
        """
        self.room = SharedRoom(most_bytes, is_shared=is_shared)
        self.min_bytes_per_s = min_bytes_per_s
        self.patience_s, self.grace_s, self.clock = patience_s, grace_s, clock
        self.arriving: dict[HeldBody, None] = {}  # the oldest first
        reserve = most_bytes // _RESERVE_SHARE
        self._small_bytes = min(_SMALL_BYTES, reserve)
        self._most_with_large = most_bytes - reserve

    @property
    def num_bytes(self) -> int:
        """What all bodies hold."""
        return self.room.total

    @property
    def largest_bytes(self) -> int:
        """The largest body that ever fits."""
        largest = self._most_with_large
        if self.room.is_shared:
            largest = min(largest, self.room.capacity // 2)
        return min(MAX_BODY_BYTES, largest)

    def hold(self, owner: Any = None) -> "HeldBody":
        """Begin to count a body whose head has arrived; leaving it gives its bytes back."""
        return HeldBody(self, owner)

    def refuse_slowest(self) -> Any | None:
        """Refuse the body that is furthest below the minimum rate, and return its owner; None where none is."""
        slow = [body for body in self.arriving if body.owner is not None and self._is_slow(body)]
        if not slow:
            return None
        slowest = min(slow, key=lambda body: body.lead_s)
        slowest.refuse(slow_body("and its connection is needed for others"))
        return slowest.owner

    def make_room(self, asker: "HeldBody", num_bytes: int) -> None:
        """Let others give way until `num_bytes` more fit.

        Raises:
            RequestError: 503, all that can give way would not be enough.
        """
        is_within_share = self.room.fits_share(asker.namespace, num_bytes)
        candidates = [body for body in self.arriving if self._can_give_way(body, asker, num_bytes)]
        if not is_within_share:
            candidates = [body for body in candidates if body.namespace == asker.namespace]
        candidates.sort(key=lambda body: body.lead_s)
        giving_way = list[HeldBody]()
        num_freed = 0
        for body in candidates:
            if self._fits(asker, num_bytes, num_freed, is_within_share=is_within_share):
                break
            giving_way.append(body)
            num_freed += body.num_bytes
        if not self._fits(asker, num_bytes, num_freed, is_within_share=is_within_share):
            raise _no_memory()
        for body in giving_way:
            body.refuse(_no_memory())

    def _can_give_way(self, body: "HeldBody", asker: "HeldBody", num_bytes: int) -> bool:
        if body is asker or not body.num_bytes:
            return False
        return body.num_bytes >= asker.num_bytes + num_bytes or self._is_slow(body)

    def _fits(self, asker: "HeldBody", num_bytes: int, num_freed: int, *, is_within_share: bool) -> bool:
        """Tell whether so much more fits once so much is freed: by the asker's own namespace, if its share is full."""
        is_small = asker.num_bytes + num_bytes < self._small_bytes
        most = self.room.capacity if is_small else self._most_with_large
        total = self.room.total - num_freed + num_bytes
        if total > most:
            return False
        held = self.room.held(asker.namespace) - num_freed + num_bytes
        return is_within_share or held <= self.room.capacity - total

    def _is_slow(self, body: "HeldBody") -> bool:
        return body.lead_s < -self.grace_s


class HeldBody:
    """One body that is arriving, or whose parsed form is still held."""

    def __init__(self, memory: BodyMemory, owner: Any) -> None:
        """Begin with nothing."""
        self.owner, self.num_bytes = owner, 0
        self.namespace = ""  # whose share it counts in, which is known before its first byte counts
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
        memory.room.take(self.namespace, num_bytes)

    def check_size(self, num_bytes: int) -> None:
        """Refuse a body of so many bytes if it never fits.

        Raises:
            RequestError: 413.
        """
        most = self._memory.largest_bytes
        if num_bytes > most:
            text = f"The body has more than {most} bytes; send fewer or smaller pictures, or their URLs."
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
        self._memory.room.give_back(self.namespace, self.num_bytes)
        self.num_bytes = 0


def slow_body(what: str) -> RequestError:
    """The refusal of a body below the minimum rate."""
    text = f"The request's body arrived too slowly, {what}; send it faster, or again later."
    return RequestError(408, "timeout", text)


def _no_memory() -> RequestError:
    text = "The bodies under way take all the memory that they may; try again later, or send smaller pictures."
    return RequestError(503, "bodies_full", text)
