"""What requests need before a step can use them, done on a thread beside the loop: pictures cut, forms compiled."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from tilewise.errors import TilewiseError

logger = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")


class Preparations(Generic[K, T]):
    """Work in the order in which it was begun, one piece at a time; the loop takes what has ended.

    `start`, `cancel` and `take_ended` are the loop's alone.
    """

    def __init__(self, name: str, ended: threading.Event) -> None:
        """`ended` is set whenever something has."""
        self._thread = ThreadPoolExecutor(1, name)
        self._running: dict[K, Future[T]] = {}
        self._ended: queue.SimpleQueue[tuple[K, Future[T]]] = queue.SimpleQueue()
        self._has_ended = ended

    @property
    def is_busy(self) -> bool:
        """Something is begun that was not taken yet."""
        return bool(self._running)

    def start(self, key: K, work: Callable[[], T]) -> None:
        """Begin a piece of work; its key is in use until it is taken or cancelled."""
        assert key not in self._running, "it is begun already"
        future = self._running[key] = self._thread.submit(work)
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
            try:
                ended.append((key, future.result()))
            except torch.AcceleratorError:
                raise
            except Exception as error:
                if not isinstance(error, TilewiseError):
                    logger.exception("a preparation failed")
                ended.append((key, error))
        return ended

    def close(self) -> None:
        """Do nothing more that is not begun by a thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tell(self, key: K, future: Future[T]) -> None:
        self._ended.put((key, future))
        self._has_ended.set()
