"""An engine in a process of its own, behind sockets in a private folder that ends with it."""

import atexit
import contextlib
import functools
import logging
import math
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tilewise import errors
from tilewise.child_process import child_command, child_environment
from tilewise.config import ResolvedConfig
from tilewise.engine import messages
from tilewise.engine.client import EngineClient
from tilewise.engine.messages import Message
from tilewise.engine.wire import Wire
from tilewise.errors import EngineError, TilewiseError
from tilewise.types import FinishReason

logger = logging.getLogger(__name__)

_POLL_S = 0.1
# PERF: glibc gives a step's memory back and takes it anew, 450 to 5400 pages a step as the heap happens to lie: 3 to
# 22 % of the time of 32 streams of the embedded model on one core of an EPYC; kept, it is 1 % (2026-11-25).
MALLOC_OPTIONS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class ProcessClient(EngineClient):
    """An engine in a process of its own, behind sockets in a private folder that ends with it.

    The process ends with this one, however this one ends. `stats` are at most `heartbeat_age_s` old, which grows
    where the process hangs or is stopped. `resolved` is what was resolved for it.
    """

    def __init__(
        self, start: messages.Start, module: str = "tilewise.engine.process", end_timeout_s: float = 10.0
    ) -> None:
        """Start `module` and wait until the model is loaded; `close` kills it if it runs `end_timeout_s` longer.

        Raises:
            TilewiseError: what the engine raised in loading.
            EngineError: the process failed or ended.
        """
        super().__init__()
        self._owner = os.getpid()
        self._end_timeout_s = end_timeout_s
        self._kill_at = math.inf
        self._stats: dict[str, float] = {}
        self._beat_at = time.monotonic()
        with contextlib.ExitStack() as held:
            folder = Path(tempfile.mkdtemp(prefix="tilewise-"))
            remove = functools.partial(_remove, folder, self._owner)
            atexit.register(remove)  # also where this process ends while the engine loads on another thread
            held.callback(atexit.unregister, remove)
            held.callback(remove)
            self._wire = Wire(folder, listen="reports", speak="requests", decoder=messages.REPORT)
            held.callback(self._wire.close)
            command = child_command(module, str(folder))
            environment = {**MALLOC_OPTIONS, **child_environment(with_secrets=True)}
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
            self._kill_at = min(self._kill_at, time.monotonic() + self._end_timeout_s)
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


def _remove(folder: Path, owner: int) -> None:
    """Remove an engine's folder; a fork, which does not own it, leaves it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()  # closes stdin, and waits
