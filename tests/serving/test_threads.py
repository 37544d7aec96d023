"""Threads that wait long and hold nothing up."""

import sys
import threading

import pytest

from tests.conftest import REPOSITORY
from tests.processes import PATIENCE_S, run_command
from tilewise.serving.threads import DaemonThreads


def test_calls_run_at_once_up_to_the_bound_and_then_in_turn() -> None:
    threads, all_run, go_on, started = DaemonThreads(2, "t"), threading.Barrier(3), threading.Event(), list[int]()

    def wait(number: int) -> int:
        started.append(number)
        if number < 2:
            all_run.wait(PATIENCE_S)
            go_on.wait(PATIENCE_S)
        return number

    futures = [threads.submit(lambda number=number: wait(number)) for number in range(5)]
    all_run.wait(PATIENCE_S)
    assert sorted(started) == [0, 1]
    go_on.set()
    assert [future.result(PATIENCE_S) for future in futures] == [0, 1, 2, 3, 4]
    threads.close()


def test_an_error_is_the_callers() -> None:
    threads = DaemonThreads(1, "t")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(PATIENCE_S)
    assert threads.submit(lambda: 1).result(PATIENCE_S) == 1
    threads.close()


def test_closing_cancels_what_waits_and_ends_the_threads() -> None:
    threads, begun, go_on = DaemonThreads(1, "closed"), threading.Event(), threading.Event()

    def wait() -> int:
        begun.set()
        go_on.wait(PATIENCE_S)
        return 1

    running = threads.submit(wait)
    assert begun.wait(PATIENCE_S)
    waiting = threads.submit(lambda: 2)
    threads.close()
    assert waiting.cancelled()
    go_on.set()
    assert running.result(PATIENCE_S) == 1
    for thread in threading.enumerate():
        if thread.name == "closed":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_the_process_ends_though_a_call_waits_for_ever() -> None:
    program = (
        "import threading; from tilewise.serving.threads import DaemonThreads; begun = threading.Event();"
        "DaemonThreads(1, 't').submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    run_command([sys.executable, "-c", program], env=environment, check=True)
