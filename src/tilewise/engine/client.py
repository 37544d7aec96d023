"""The door to an engine: submit, abort, health. One interface, whatever lies between."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from tilewise.engine.messages import Abort, Message, Shutdown, Submit
from tilewise.errors import EngineError
from tilewise.types import FinishReason, Request, StepOutput

logger = logging.getLogger(__name__)

OnOutput = Callable[[StepOutput], None]


class EngineClient(Protocol):
    """What front ends ask of an engine; every method may be called from any thread."""

    def submit(self, request: Request, on_output: OnOutput) -> None:
        """Start a request. `on_output` is called from an engine thread, in order; its last output ends it.

        Raises:
            EngineError: the engine is gone, or the id is in use.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Ask to end a request; it then ends with `abort`, unless it ends otherwise first."""
        ...

    def stats(self) -> dict[str, float]:
        """Return counters and stage times since the start."""
        ...

    def is_alive(self) -> bool:
        """Tell whether requests can be answered."""
        ...

    def close(self) -> None:
        """End the engine; what still runs ends with `abort`. A second call does nothing."""
        ...


class Core(Protocol):
    """What this module needs to know of `engine.core.EngineCore`, which imports torch."""

    def run_forever(self, inbox: "queue.SimpleQueue[Message]", emit: OnOutput) -> None:
        """Work until told to shut down."""
        ...

    def stats(self) -> dict[str, float]:
        """Return counters."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used again."""
        ...


class InProcessClient:
    """An engine on a thread of this process, with a queue in each direction."""

    def __init__(self, core: Core) -> None:
        """Start the thread; it is a daemon, so an unclosed engine does not keep the interpreter alive."""
        self._core = core
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._sinks: dict[str, OnOutput] = {}
        self._lock = threading.Lock()
        self._is_open = True
        self._last_stats: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="tilewise-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_output: OnOutput) -> None:
        """See `EngineClient.submit`."""
        with self._lock:
            if not self._is_open:
                raise EngineError("The engine is closed; start a new one.")
            if request.request_id in self._sinks:
                raise EngineError(f"Request {request.request_id!r} is already running; give each its own id.")
            self._sinks[request.request_id] = on_output
            self._inbox.put(Submit(request))

    def abort(self, request_id: str) -> None:
        """See `EngineClient.abort`."""
        self._inbox.put(Abort(request_id))

    def stats(self) -> dict[str, float]:
        """See `EngineClient.stats`."""
        with self._lock:
            return self._core.stats() if self._is_open else self._last_stats

    def is_alive(self) -> bool:
        """See `EngineClient.is_alive`."""
        return self._is_open and self._thread.is_alive()

    def close(self) -> None:
        """See `EngineClient.close`."""
        self._inbox.put(Shutdown())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        reason, error = FinishReason.ABORT, None
        try:
            self._core.run_forever(self._inbox, self._emit)
        except Exception:
            logger.exception("the engine stopped")
            reason, error = FinishReason.ERROR, "The engine stopped; its log says why."
        finally:
            with self._lock:
                self._last_stats = self._core.stats()
                self._is_open = False
                self._core.close()
                open_requests = list(self._sinks)
            for request_id in open_requests:
                self._emit(StepOutput(request_id, finish_reason=reason, error=error))

    def _emit(self, output: StepOutput) -> None:
        with self._lock:
            if output.finish_reason is None:
                sink = self._sinks.get(output.request_id)
            else:
                sink = self._sinks.pop(output.request_id, None)
        if sink is not None:
            try:
                sink(output)
            except Exception:  # a front end's fault must not end the engine
                logger.exception("a sink failed")
