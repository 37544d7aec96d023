"""Threads for work that may wait long, none of which holds up the end of the process.

Owners of calls take turns, and where several share the threads some are always left for others (`room`): whose calls
all wait for a slow host holds up nobody else's. The standard library's pool is joined when Python ends, however long a
picture's host takes.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from tilewise.room import SharedRoom

T = TypeVar("T")
_Call = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads:
    """At most so many threads, started when needed, that take calls in turn."""

    def __init__(self, most: int, name: str, *, is_shared: bool = False) -> None:
        """Start none yet; `is_shared` is for calls of several owners."""
        self._most, self._name = most, name
        self._room = SharedRoom(most, is_shared=is_shared)
        # Of each owner whose calls wait, in the order of their next turns.
        self._calls: OrderedDict[str, deque[_Call]] = OrderedDict()
        self._changed = threading.Condition()
        self._num_threads = self._num_idle = 0
        self._is_closed = False

    def submit(self, call: Callable[[], T], owner: str = "") -> Future[T]:
        """Let a thread do it; the future may be cancelled until one has taken it.

        Raises:
            RuntimeError: the system has no thread for it.
        """
        future: Future[T] = Future()
        with self._changed:
            self._calls.setdefault(owner, deque()).append((future, call))
            self._changed.notify_all()
            # One that is idle is counted until it has woken: several calls may have come by then.
            if sum(map(len, self._calls.values())) > self._num_idle and self._num_threads < self._most:
                self._start_thread()
        future.add_done_callback(lambda done: self._drop(owner, done))
        return future

    def close(self) -> None:
        """Cancel what no thread has taken, and let the threads end once they can; none is waited for."""
        with self._changed:
            waiting = [future for calls in self._calls.values() for future, _ in calls]
            self._calls.clear()
            self._is_closed = True
            self._changed.notify_all()
        for future in waiting:
            future.cancel()

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has none left
            if not self._num_threads:
                self._calls.clear()
                raise
        else:
            self._num_threads += 1

    def _drop(self, owner: str, future: Future[Any]) -> None:
        """Let go of a call that was cancelled while it waited, and of all that it would have used."""
        if not future.cancelled():
            return
        with self._changed:
            calls = [call for call in self._calls.get(owner, ()) if call[0] is not future]
            if calls:
                self._calls[owner] = deque(calls)
            else:
                self._calls.pop(owner, None)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            owner, (future, call) = taken
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del taken, future, call  # an idle thread must not hold a request's pictures
            with self._changed:
                self._room.give_back(owner, 1)
                if self._calls and self._num_idle:  # others' shares have grown, too
                    self._changed.notify_all()

    def _take(self) -> tuple[str, _Call] | None:
        """Wait for a call that may run; None once the threads are closed."""
        with self._changed:
            while True:
                for owner, calls in self._calls.items():
                    if not self._room.fits_share(owner, 1):
                        continue
                    call = calls.popleft()
                    self._calls.move_to_end(owner)
                    if not calls:
                        del self._calls[owner]
                    self._room.take(owner, 1)
                    return owner, call
                if self._is_closed:
                    return None
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
