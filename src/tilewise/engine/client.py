"""The door to an engine: submit, abort, health. One interface, whatever lies between."""

import contextlib
import logging
import math
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tilewise import errors
from tilewise.child_process import child_command, child_environment
from tilewise.config import ResolvedConfig
from tilewise.engine import messages
from tilewise.engine.messages import Message
from tilewise.engine.wire import Wire
from tilewise.errors import EngineError, TilewiseError
from tilewise.types import FinishReason, Request, StepOutput

logger = logging.getLogger(__name__)

OnOutput = Callable[[StepOutput], None]
_POLL_S, _END_TIMEOUT_S = 0.1, 10.0
# PERF: glibc gives a step's memory back and takes it anew, 450 to 5400 pages a step as the heap happens to lie: 3 to
# 22 % of the time of 32 streams of the embedded model on one core of an EPYC; kept, it is 1 % (2026-11-25).
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class Core(Protocol):
    """What this module needs to know of `engine.core.EngineCore`, which imports torch."""

    def run_forever(self, inbox: "queue.SimpleQueue[Message]", emit: Callable[[Sequence[StepOutput]], None]) -> None:
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


class InProcessClient(EngineClient):
    """An engine on a thread of this process, with a queue in each direction."""

    def __init__(self, core: Core) -> None:
        """Start the thread."""
        super().__init__()
        self._core = core
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
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


class ProcessClient(EngineClient):
    """An engine in a process of its own, behind sockets in a private folder that ends with it.

    The process ends with this one, however this one ends. `stats` are at most `heartbeat_age_s` old, which grows
    where the process hangs or is stopped. `resolved` is what was resolved for it.
    """

    def __init__(self, start: messages.Start, module: str = "tilewise.engine.process") -> None:
        """Start `module` and wait until the model is loaded.

        Raises:
            TilewiseError: what the engine raised in loading.
            EngineError: the process failed or ended.
        """
        super().__init__()
        self._owner = os.getpid()
        self._kill_at = math.inf
        self._stats: dict[str, float] = {}
        self._beat_at = time.monotonic()
        with contextlib.ExitStack() as held:
            folder = Path(tempfile.mkdtemp(prefix="tilewise-"))
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            self._wire = Wire(folder, listen="reports", speak="requests", decoder=messages.REPORT)
            held.callback(self._wire.close)
            command = child_command(module, str(folder))
            environment = {**_MALLOC, **child_environment(with_secrets=True)}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            held.callback(_end, self._process)
            self.resolved = self._load(start)
            self._held = held.pop_all()
        self._thread.start()

    @property
    def process_id(self) -> int:
        """Id of the engine's process."""
        return self._process.pid

    def stats(self) -> dict[str, float]:
        """As the engine's process last told, with the age of that."""
        return {**self._stats, "heartbeat_age_s": time.monotonic() - self._beat_at}

    def is_alive(self) -> bool:
        """Tell whether requests can be answered."""
        return self._sinks.is_open and self._process.poll() is None

    def close(self) -> None:
        """End the process, by force where it takes too long; in a fork, which does not own it, do nothing."""
        if os.getpid() == self._owner:
            self._kill_at = min(self._kill_at, time.monotonic() + _END_TIMEOUT_S)
            super().close()

    def _send(self, message: Message) -> None:
        self._wire.send(message)

    def _load(self, start: messages.Start) -> ResolvedConfig:
        (data,) = messages.encode(start)
        with contextlib.suppress(BrokenPipeError):  # then it has ended, which is told below
            assert self._process.stdin is not None
            self._process.stdin.write(len(data).to_bytes(4, "big") + data)
            self._process.stdin.flush()
        while (report := self._receive()) is not None:
            if isinstance(report, messages.Ready):
                return report.resolved
            if isinstance(report, messages.Failed):
                kind = getattr(errors, report.error, EngineError)
                is_ours = isinstance(kind, type) and issubclass(kind, TilewiseError)
                raise (kind if is_ours else EngineError)(report.text, param=report.param)
            self._take(report)
        text = f"The engine's process ended with status {self._process.returncode} in loading; stderr may say why."
        raise EngineError(text)

    def _receive(self) -> messages.Report | None:
        """The next report, or None once the process has ended and all it sent is read."""
        has_ended = False
        while (report := self._wire.receive(_POLL_S)) is None and not has_ended:
            has_ended = self._process.poll() is not None  # then what it sent last is still read
            if time.monotonic() > self._kill_at:
                self._process.kill()
        return report

    def _take(self, report: messages.Report) -> None:
        if isinstance(report, messages.Outputs):
            self._sinks.deliver(report.outputs)
        elif isinstance(report, messages.Heartbeat):
            self._stats, self._beat_at = report.stats, time.monotonic()
        elif isinstance(report, messages.Log):
            logging.getLogger(report.logger).log(report.level, "%s", report.text)

    def _work(self) -> None:
        try:
            while (report := self._receive()) is not None:
                self._take(report)
        finally:
            if self._kill_at < math.inf:
                self._sinks.close(FinishReason.ABORT, None)
            else:
                logger.error("the engine's process ended with status %s", self._process.returncode)
                self._sinks.close(FinishReason.ERROR, "The engine stopped; its log says why.")
            self._held.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()  # closes stdin, and waits
