"""Threads that wait long and hold nothing up."""

import gc
import sys
import threading
import weakref

import pytest

from tests.conftest import REPOSITORY
from tests.processes import PATIENCE_S, run_command
from tilewise.threads import DaemonThreads


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


def test_one_owner_holds_no_more_than_half_where_threads_are_shared() -> None:
    threads, go_on, started = DaemonThreads(4, "t", is_shared=True), threading.Event(), list[str]()
    changed = threading.Condition()

    def wait(owner: str) -> None:
        with changed:
            started.append(owner)
            changed.notify_all()
        go_on.wait(PATIENCE_S)

    futures = [threads.submit(lambda: wait("a"), "a") for _ in range(20)]
    with changed:
        assert changed.wait_for(lambda: len(started) == 2, PATIENCE_S)
    for owner in "bc":
        futures += [threads.submit(lambda owner=owner: wait(owner), owner) for _ in range(2)]
        with changed:
            assert changed.wait_for(lambda owner=owner: owner in started, PATIENCE_S)
    assert started == ["a", "a", "b", "c"], "a was not given more while the others came"
    go_on.set()
    for future in futures:
        future.result(PATIENCE_S)
    assert [*map(started.count, "abc")] == [20, 2, 2]
    threads.close()


def test_owners_take_turns() -> None:
    threads, begun, go_on, started = DaemonThreads(1, "t"), threading.Event(), threading.Event(), list[str]()
    futures = [threads.submit(lambda: begun.set() or go_on.wait(PATIENCE_S), "a")]
    assert begun.wait(PATIENCE_S)
    for owner in "aaabcc":
        futures.append(threads.submit(lambda owner=owner: started.append(owner) or True, owner))
    go_on.set()
    for future in futures:
        future.result(PATIENCE_S)
    assert started == ["a", "b", "c", "a", "c", "a"]
    threads.close()


def test_a_call_waits_for_no_other_one_while_a_thread_may_be_started() -> None:
    threads, go_on, ran = DaemonThreads(2, "t"), threading.Event(), threading.Event()
    for _ in range(50):  # the first of two that come together finds an idle thread, which has not woken yet
        threads.submit(lambda: None).result(PATIENCE_S)
        held = threads.submit(lambda: go_on.wait(PATIENCE_S))
        threads.submit(ran.set)
        assert ran.wait(PATIENCE_S)
        assert not held.done()
        go_on.set()
        held.result(PATIENCE_S)
        go_on.clear()
        ran.clear()
    threads.close()


def test_a_call_that_is_cancelled_while_it_waits_is_let_go_of() -> None:
    class Held:
        pass

    threads, begun, go_on = DaemonThreads(1, "t"), threading.Event(), threading.Event()
    running = threads.submit(lambda: begun.set() or go_on.wait(PATIENCE_S))
    assert begun.wait(PATIENCE_S)
    held = Held()
    gone = weakref.ref(held)
    waiting = threads.submit(lambda held=held: held)
    other = threads.submit(lambda: 2)
    del held
    assert waiting.cancel()
    gc.collect()
    assert gone() is None
    go_on.set()
    assert running.result(PATIENCE_S)
    assert other.result(PATIENCE_S) == 2
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
        "import threading; from tilewise.threads import DaemonThreads; begun = threading.Event();"
        "DaemonThreads(1, 't').submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    run_command([sys.executable, "-c", program], env=environment, check=True)
