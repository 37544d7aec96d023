"""Threads that wait long and hold nothing up."""

import subprocess
import sys
import threading

import pytest

from tests.conftest import REPOSITORY
from tilewise.serving.threads import DaemonThreads


def test_calls_run_at_once_up_to_the_bound_and_then_in_turn() -> None:
    threads, all_run, go_on, started = DaemonThreads(2, "t"), threading.Barrier(3), threading.Event(), list[int]()

    def wait(number: int) -> int:
        started.append(number)
        if number < 2:
            all_run.wait(60)
            go_on.wait(60)
        return number

    futures = [threads.submit(lambda number=number: wait(number)) for number in range(5)]
    all_run.wait(60)
    assert sorted(started) == [0, 1]
    go_on.set()
    assert [future.result(60) for future in futures] == [0, 1, 2, 3, 4]
    threads.close()


def test_an_error_is_the_callers() -> None:
    threads = DaemonThreads(1, "t")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(60)
    assert threads.submit(lambda: 1).result(60) == 1
    threads.close()


def test_closing_cancels_what_waits_and_ends_the_threads() -> None:
    threads, begun, go_on = DaemonThreads(1, "closed"), threading.Event(), threading.Event()

    def wait() -> int:
        begun.set()
        go_on.wait(60)
        return 1

    running = threads.submit(wait)
    assert begun.wait(60)
    waiting = threads.submit(lambda: 2)
    threads.close()
    assert waiting.cancelled()
    go_on.set()
    assert running.result(60) == 1
    for thread in threading.enumerate():
        if thread.name == "closed":
            thread.join(60)
            assert not thread.is_alive()


def test_the_process_ends_though_a_call_waits_for_ever() -> None:
    program = (
        "import threading; from tilewise.serving.threads import DaemonThreads; begun = threading.Event();"
        "DaemonThreads(1, 't').submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
