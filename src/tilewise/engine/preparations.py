"""What requests need before a step can use them, done on a thread beside the loop: pictures cut, forms compiled."""

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

import torch

from tilewise.errors import TilewiseError
from tilewise.threads import DaemonThreads

logger = logging.getLogger(__name__)

_END_S = 5.0
K = TypeVar("K")
T = TypeVar("T")


class Preparations(Generic[K, T]):
    """Pieces of work, one at a time; their owners take turns. The loop takes what has ended.

    `start`, `cancel` and `take_ended` are the loop's alone.
    """

    def __init__(self, name: str, on_end: Callable[[], None]) -> None:
        """`on_end` is called, on any thread, whenever something has ended."""
        self._thread = DaemonThreads(1, name)
        self._running: dict[K, Future[T]] = {}
        self._ended: queue.SimpleQueue[tuple[K, Future[T]]] = queue.SimpleQueue()
        self._on_end = on_end

    @property
    def is_busy(self) -> bool:
        """Something is begun that was not taken yet."""
        return bool(self._running)

    def start(self, key: K, work: Callable[[], T], owner: str = "") -> None:
        """Begin a piece of work; its key is in use until it is taken or cancelled."""
        assert key not in self._running, "it is begun already"
        try:
            future = self._thread.submit(work, owner)
        except RuntimeError as error:  # the system has no thread for it
            future = Future[T]()
            future.set_exception(error)
        self._running[key] = future
        future.add_done_callback(lambda done: self._tell(key, done))

    def cancel(self, key: K) -> None:
        """Drop what nobody needs any more: if no thread has taken it yet it is never done."""
        future = self._running.pop(key, None)
        if future is not None:
            future.cancel()

    def take_ended(self) -> list[tuple[K, T | Exception]]:
        """What has ended since the last call, in that order: a result, or what was raised, which is logged.

        Raises:
            torch.AcceleratorError: the device is lost.
        """
        ended: list[tuple[K, T | Exception]] = []
        while not self._ended.empty():
            key, future = self._ended.get()
            if self._running.get(key) is not future:  # it was cancelled meanwhile
                continue
            del self._running[key]
            ended.append((key, _read(future)))
        return ended

    def close(self) -> None:
        """Do nothing more that no thread has taken; what a thread does is waited for, but not long."""
        running = list(self._running.values())
        for key in list(self._running):
            self.cancel(key)
        self._thread.close()
        wait([future for future in running if not future.cancelled()], _END_S)
        self.take_ended()

    def _tell(self, key: K, future: Future[T]) -> None:
        if not future.cancelled():
            self._ended.put((key, future))
            self._on_end()


def _read(future: Future[T]) -> T | Exception:
    try:
        return future.result()
    except torch.AcceleratorError:
        raise
    except TilewiseError as error:
        return error
    except Exception as error:
        logger.exception("a preparation failed")
        return error
