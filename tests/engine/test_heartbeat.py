"""An engine whose loop hangs has no heartbeat; one that is idle, or slow, has."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes import PATIENCE_S
from tilewise.engine.messages import Abort, Heartbeat, Message
from tilewise.engine.process import beat

PERIOD_S, STALLED_BEATS = 0.01, 50


class Loop:
    """A core, its inbox and its wire at once: `work` runs on the thread that the heart watches."""

    def __init__(self, work: Callable[["Loop"], None], num_running: int) -> None:
        self.counters = {"requests_running": float(num_running), "requests_waiting": 0.0}
        self.beats = queue.SimpleQueue[Any]()
        self.num_looks = 0  # at the counters, since the last heartbeat
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.ended, self.released = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=work, args=(self,))]
        self.threads[0].start()
        arguments = (self, self, self.inbox, self.threads[0].ident, self.ended, PERIOD_S, STALLED_BEATS)
        self.threads.append(threading.Thread(target=beat, args=arguments))
        self.threads[1].start()

    def send(self, report: Any) -> None:
        self.num_looks = 0
        self.beats.put(report)

    def stats(self) -> dict[str, float]:
        self.num_looks += 1
        return dict(self.counters)

    def hear(self, count: int) -> None:
        for _ in range(count):
            assert isinstance(self.beats.get(timeout=PATIENCE_S), Heartbeat)


@pytest.fixture
def start() -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def run(work: Callable[[Loop], None], num_running: int) -> Loop:
        loops.append(Loop(work, num_running))
        return loops[-1]

    yield run
    for loop in loops:
        loop.released.set()
        loop.ended.set()
        for thread in loop.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def hang(loop: Loop) -> None:
    loop.released.wait()
    loop.ended.wait()


def compute(loop: Loop) -> None:
    """As a long step does: no counter moves, but the loop goes on from call to call."""

    def call(depth: int) -> None:
        time.sleep(0.002)
        if depth:
            call(depth - 1)

    while not loop.ended.is_set():
        call(30)


def wait_for_end_of_beats(loop: Loop) -> None:
    """Until the heart has looked time and again and told nothing; what it told before is thrown away."""
    deadline = time.monotonic() + PATIENCE_S
    while loop.num_looks < STALLED_BEATS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while not loop.beats.empty():
        loop.beats.get()


def test_a_loop_that_hangs_while_requests_run_has_no_heartbeat_until_it_moves_on(
    start: Callable[..., Loop], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    loop = start(hang, 2)
    wait_for_end_of_beats(loop)
    (record,) = caplog.records
    assert (record.levelname, record.args) == ("ERROR", (2,)), "it says how many requests wait"
    assert "in hang" in capfd.readouterr().err
    loop.released.set()
    loop.hear(STALLED_BEATS // 2)


def test_a_loop_that_does_not_take_what_is_sent_to_it_has_no_heartbeat(start: Callable[..., Loop]) -> None:
    loop = start(hang, 0)
    loop.hear(2 * STALLED_BEATS)
    loop.inbox.put(Abort("r"))
    wait_for_end_of_beats(loop)


@pytest.mark.parametrize(("work", "num_running"), [(hang, 0), (compute, 2)])
def test_an_idle_loop_and_one_in_a_long_step_keep_their_heartbeat(
    start: Callable[..., Loop], work: Callable[[Loop], None], num_running: int
) -> None:
    start(work, num_running).hear(4 * STALLED_BEATS)


def test_counters_that_move_are_progress(start: Callable[..., Loop]) -> None:
    loop = start(hang, 2)
    for number in range(4 * STALLED_BEATS):
        loop.hear(1)
        loop.counters["decode_s"] = float(number)
