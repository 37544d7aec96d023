"""An engine on a thread of this process, with a queue in each direction."""

import logging
import queue
import threading

from tilewise.engine.client import Core, EngineClient
from tilewise.engine.messages import Inbox, Message
from tilewise.types import FinishReason

logger = logging.getLogger(__name__)


class InProcessClient(EngineClient):
    """An engine on a thread of this process, with a queue in each direction."""

    def __init__(self, core: Core) -> None:
        """Start the thread."""
        super().__init__()
        self._core = core
        self._inbox: Inbox = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._last_stats: dict[str, float] | None = None
        self._thread.start()

    def stats(self) -> dict[str, float]:
        """As they are now, or were last."""
        with self._lock:
            return self._core.stats() if self._last_stats is None else self._last_stats

    def _send(self, message: Message) -> None:
        self._inbox.put(message)

    def _work(self) -> None:
        reason, error = FinishReason.ABORT, None
        try:
            self._core.run_forever(self._inbox, self._sinks.deliver)
        except Exception:
            logger.exception("the engine stopped")
            reason, error = FinishReason.ERROR, "The engine stopped; its log says why."
        finally:
            try:
                with self._lock:
                    self._last_stats = self._core.stats()
                    self._core.close()
            finally:
                self._sinks.close(reason, error)
