"""What front ends ask of an engine: submit, abort, health; one interface, whatever lies between."""

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from tilewise.engine import messages
from tilewise.engine.messages import Inbox, Message
from tilewise.errors import EngineError
from tilewise.types import FinishReason, Request, StepOutput

logger = logging.getLogger(__name__)

OnOutput = Callable[[StepOutput], None]


class Core(Protocol):
    """What this module needs to know of `engine.core.EngineCore`, which imports torch."""

    def run_forever(self, inbox: Inbox, emit: Callable[[Sequence[StepOutput]], None]) -> None:
        """Work until told to shut down."""

    def stats(self) -> dict[str, float]:
        """Return counters."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used again."""


class _Sinks:
    """Who listens to which request; each hears of its end once."""

    def __init__(self) -> None:
        self.is_open = True
        self._sinks: dict[str, OnOutput] = {}
        self._lock = threading.Lock()

    def add(self, request_id: str, on_output: OnOutput) -> None:
        with self._lock:
            if not self.is_open:
                raise EngineError("The engine is closed; start a new one.")
            if request_id in self._sinks:
                raise EngineError(f"Request {request_id!r} is already running; give each its own id.")
            self._sinks[request_id] = on_output

    def remove(self, request_id: str) -> None:
        with self._lock:
            self._sinks.pop(request_id, None)

    def deliver(self, outputs: Sequence[StepOutput]) -> None:
        with self._lock:
            sinks = [
                (self._sinks.get if output.finish_reason is None else self._sinks.pop)(output.request_id, None)
                for output in outputs
            ]
        for sink, output in zip(sinks, outputs, strict=True):
            if sink is not None:
                try:
                    sink(output)
                except Exception:  # a front end's fault must not end the engine
                    logger.exception("a sink failed")

    def close(self, reason: FinishReason, error: str | None) -> None:
        """Take no more, and end what is open."""
        with self._lock:
            self.is_open = False
            open_requests = list(self._sinks)
        self.deliver([StepOutput(request_id, finish_reason=reason, error=error) for request_id in open_requests])


class EngineClient(ABC):
    """What front ends ask of an engine, over whichever transport; every method may be called from any thread."""

    def __init__(self) -> None:
        """Create the thread that hears the engine; a daemon, so that an unclosed one does not keep Python alive."""
        self._sinks = _Sinks()
        self._thread = threading.Thread(target=self._work, name="tilewise-engine", daemon=True)

    def submit(self, request: Request, on_output: OnOutput, more: Sequence[tuple[Request, OnOutput]] = ()) -> None:
        """Start a request, and `more` of the same pictures, which travel once: all of them or none.

        `on_output` is called from an engine thread, in order; a request's last output ends it.

        Raises:
            EngineError: the engine is gone, or an id is in use.
            InputError: the request cannot be sent.
        """
        with contextlib.ExitStack() as added:
            for each, sink in ((request, on_output), *more):
                self._sinks.add(each.request_id, sink)
                added.callback(self._sinks.remove, each.request_id)
            self._send(messages.Submit((request, *(each for each, _ in more))))
            added.pop_all()

    def abort(self, request_id: str) -> None:
        """Ask to end a request; it then ends with `abort`, unless it ends otherwise first."""
        self._send(messages.Abort(request_id))

    @abstractmethod
    def stats(self) -> dict[str, float]:
        """Return counters and stage times since the start; the engine is not waited for."""

    def is_alive(self) -> bool:
        """Tell whether requests can be answered."""
        return self._sinks.is_open and self._thread.is_alive()

    def close(self) -> None:
        """End the engine; what still runs ends with `abort`. A second call does nothing."""
        self._send(messages.Shutdown())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @abstractmethod
    def _send(self, message: Message) -> None: ...

    @abstractmethod
    def _work(self) -> None:
        """Deliver outputs until the engine has ended, then close the sinks."""
