"""Threads for work that may wait long, none of which holds up the end of the process.

The standard library's pool is joined when Python ends, however long a picture's host takes.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_Call = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads:
    """At most so many threads, started when needed, that take calls in turn."""

    def __init__(self, most: int, name: str) -> None:
        """Start none yet."""
        self._most, self._name = most, name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Let a thread do it; the future may be cancelled until one has taken it."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        with self._lock:
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._most:
                self._threads.append(threading.Thread(target=self._work, name=self._name, daemon=True))
                self._threads[-1].start()
        return future

    def close(self) -> None:
        """Cancel what no thread has taken, and let the threads end once they can; none is waited for."""
        with suppress(queue.Empty):
            while True:
                waiting = self._calls.get_nowait()
                if waiting is not None:
                    waiting[0].cancel()
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            future, call = taken
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del taken, future, call  # an idle thread must not hold a request's pictures

    def _take(self) -> _Call | None:
        with suppress(queue.Empty):
            return self._calls.get_nowait()
        self._idle.release()
        return self._calls.get()
