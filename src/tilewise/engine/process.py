"""An engine in a process of its own: `python -m tilewise.engine.process FOLDER`, started by `ProcessClient`.

A length and a `Start` come on stdin, which then stays open for as long as the parent lives; all else goes over the
sockets in FOLDER. Log lines travel to the parent, what is printed goes to stderr. Signals that reach a whole group
or container are ignored: the parent decides when to end. Once it is gone the process ends at once.
"""

import faulthandler
import logging
import os
import queue
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tilewise.config import EngineConfig, ResolvedConfig
from tilewise.engine.client import Core
from tilewise.engine.messages import MESSAGE, START, Failed, Heartbeat, Log, Message, Outputs, Ready, Start, decode
from tilewise.engine.wire import Wire
from tilewise.errors import TilewiseError

logger = logging.getLogger(__name__)

Build = Callable[[Start], tuple[Core, ResolvedConfig]]
HEARTBEAT_S = 0.25
_POLL_S = 0.1
_LINGER_S = 5.0


class _Forward(logging.Handler):
    """Sends log lines, with their tracebacks, to the parent."""

    def __init__(self, wire: Wire[Message]) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).encode(errors="replace").decode()
        self._wire.send(Log(record.name, record.levelno, text))


def _read_start() -> Start | None:
    """What the parent wants, or None if it is gone."""
    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    data = sys.stdin.buffer.read(size)
    return decode(START, [data]) if 0 < size == len(data) else None


def _listen(wire: Wire[Message], inbox: "queue.SimpleQueue[Message]", folder: Path, ended: threading.Event) -> None:
    parent = os.getppid()
    while not ended.is_set():
        message = wire.receive(_POLL_S)
        if message is not None:
            inbox.put(message)
        # NOTE: neither sign is enough: a fork of the parent holds stdin open, and the parent may end before `getppid`.
        if os.getppid() != parent or select.select([0], [], [], 0.0)[0]:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)


def _beat(wire: Wire[Message], core: Core, ended: threading.Event) -> None:
    is_last = False
    while not is_last:
        is_last = ended.wait(HEARTBEAT_S)
        wire.send(Heartbeat(core.stats()))


def serve(folder: Path, build: Build) -> int:
    """Build an engine and run it until told to shut down; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    os.dup2(2, 1)  # a stray print must not land in the output of the parent's command
    start = _read_start()
    if start is None:
        shutil.rmtree(folder, ignore_errors=True)
        return 1
    wire = Wire(folder, listen="requests", speak="reports", decoder=MESSAGE)
    root = logging.getLogger("tilewise")
    root.setLevel(start.log_level)
    root.propagate = False
    root.addHandler(_Forward(wire))
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    ended = threading.Event()
    listener = threading.Thread(
        target=_listen, args=(wire, inbox, folder, ended), name="tilewise-listener", daemon=True
    )
    listener.start()
    status = _work(wire, start, inbox, build)
    ended.set()
    listener.join()
    root.handlers.clear()
    wire.close(_LINGER_S)
    return status


def _work(wire: Wire[Message], start: Start, inbox: "queue.SimpleQueue[Message]", build: Build) -> int:
    try:
        core, resolved = build(start)
    except Exception as error:
        is_ours = isinstance(error, TilewiseError)
        text = str(error) if is_ours else "The engine could not start; its log says why."
        if not is_ours:
            logger.exception("the engine could not start")
        wire.send(Failed(type(error).__name__, text, error.param if is_ours else None))
        return 1
    wire.send(Ready(resolved))
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(wire, core, ended), name="tilewise-heart", daemon=True)
    heart.start()
    status = 0
    try:
        core.run_forever(inbox, lambda outputs: wire.send(Outputs(tuple(outputs))))
    except Exception:
        logger.exception("the engine stopped")
        status = 1
    ended.set()
    heart.join()
    return status


def build(start: Start) -> tuple[Core, ResolvedConfig]:
    """Load the checkpoint that the parent found."""
    from tilewise.engine.core import build_core

    return build_core(Path(start.folder), start.model, EngineConfig.from_options(start.options))


if __name__ == "__main__":
    # Past all exit handlers: after a device is lost they may hang, and the system takes back what is held anyway.
    os._exit(serve(Path(sys.argv[1]), build))
