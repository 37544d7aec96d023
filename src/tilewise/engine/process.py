"""An engine in a process of its own: `python -m tilewise.engine.process FOLDER`, started by `ProcessClient`.

A length and a `Start` come on stdin, which then stays open for as long as the parent lives; all else goes over the
sockets in FOLDER. Log lines travel to the parent, what is printed goes to stderr. Signals that reach a whole group
or container are ignored: the parent decides when to end. Once it is gone the process ends at once.

Where the loop hangs with requests to answer, its stacks go to stderr and its heartbeat ends, until it moves on.
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
from types import CodeType

from tilewise.config import EngineConfig, ResolvedConfig
from tilewise.engine.client import Core
from tilewise.engine.messages import (
    MESSAGE,
    START,
    Failed,
    Heartbeat,
    Inbox,
    Log,
    Message,
    Outputs,
    Ready,
    Start,
    decode,
)
from tilewise.engine.wire import Wire
from tilewise.errors import TilewiseError

logger = logging.getLogger(__name__)

Build = Callable[[Start], tuple[Core, ResolvedConfig]]
HEARTBEAT_S = 0.25
# Of 20 s; a front end that hears nothing for 10 s more takes the engine for hung. Counters may stand still for longer:
# in a long prefill on a CPU, or while a step's kernels are compiled. But that goes on from call to call, and no single
# one takes so long: the largest product of a prefill on few cores, or the assembling of one kernel, takes seconds.
# Beats are counted and not time, in which the whole process may have been stopped.
STALLED_BEATS = 80
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


def _listen(wire: Wire[Message], inbox: Inbox, folder: Path, ended: threading.Event) -> None:
    parent = os.getppid()
    while not ended.is_set():
        message = wire.receive(_POLL_S)
        if message is not None:
            inbox.put(message)
        # NOTE: neither sign is enough: a fork of the parent holds stdin open, and the parent may end before `getppid`.
        if os.getppid() != parent or select.select([0], [], [], 0.0)[0]:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)


def beat(
    wire: Wire[Message],
    core: Core,
    inbox: Inbox,
    loop_id: int,
    ended: threading.Event,
    period_s: float = HEARTBEAT_S,
    stalled_beats: int = STALLED_BEATS,
) -> None:
    """Send the counters every `period_s` until `ended`, while the loop on thread `loop_id` moves on or is idle.

    The heartbeat pauses, and the stacks are dumped, once the loop has stood still for `stalled_beats` periods.
    """
    seen, num_unmoved, is_last = None, 0, False
    while not is_last:
        is_last = ended.wait(period_s)
        stats, before = core.stats(), seen
        num_open = stats.get("requests_running", 0) + stats.get("requests_waiting", 0) + inbox.qsize()
        seen = stats, _place_of(loop_id)
        num_unmoved = num_unmoved + 1 if num_open and seen == before else 0
        if num_unmoved < stalled_beats or is_last:
            wire.send(Heartbeat(stats))
        elif num_unmoved == stalled_beats:
            logger.error("the engine stands still, with %d requests or messages; stderr shows where", num_open)
            faulthandler.dump_traceback()


def _place_of(thread_id: int) -> list[tuple[CodeType, int]]:
    """Where in its program a thread is: every call it is in, the innermost first, and how far that has come."""
    frame, place = sys._current_frames().get(thread_id), list[tuple[CodeType, int]]()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        place.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return place


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
    inbox: Inbox = queue.SimpleQueue()
    ended = threading.Event()
    args = wire, inbox, folder, ended
    listener = threading.Thread(target=_listen, args=args, name="tilewise-listener", daemon=True)
    listener.start()
    status = _work(wire, start, inbox, build)
    ended.set()
    listener.join()
    root.handlers.clear()
    wire.close(_LINGER_S)
    return status


def _work(wire: Wire[Message], start: Start, inbox: Inbox, build: Build) -> int:
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
    args = wire, core, inbox, threading.get_ident(), ended
    heart = threading.Thread(target=beat, args=args, name="tilewise-heart", daemon=True)
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

    return build_core(Path(start.folder), start.model, EngineConfig.from_options(start.options), is_served=True)


if __name__ == "__main__":
    # Past all exit handlers: after a device is lost they may hang, and the system takes back what is held anyway.
    os._exit(serve(Path(sys.argv[1]), build))
