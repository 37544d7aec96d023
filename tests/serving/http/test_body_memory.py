"""What bodies hold together, and which gives way: a clock of the test's own, then bodies as routes read them."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from tests.processes import PATIENCE_S
from tilewise.errors import TilewiseError
from tilewise.serving.http.body import read_json
from tilewise.serving.http.body_memory import MAX_BODY_BYTES, BodyMemory, HeldBody
from tilewise.serving.http.errors import RequestError

MIB = 1 << 20
# Of which 8 MiB are for bodies of a mebibyte or more, and the rest for smaller ones.
WITH_RESERVE = 9586980


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> BodyMemory:
    return BodyMemory(WITH_RESERVE, 1024, patience_s=20, grace_s=0, clock=clock)


@contextmanager
def refused(status: int) -> Iterator[None]:
    with pytest.raises(RequestError) as refusal:
        yield
    assert refusal.value.status == status


def test_bytes_count_from_when_they_arrive_until_the_body_is_let_go(memory: BodyMemory) -> None:
    with memory.hold() as body:
        body.check_size(8 * MIB)
        assert memory.num_bytes == 0
        body.add(100)
        body.add(20)
        body.end_arrival()
        assert memory.num_bytes == 120
        body.release()
        assert memory.num_bytes == 0
    assert memory.num_bytes == 0


def test_what_never_fits_is_too_large_and_what_does_not_fit_now_may_come_again(memory: BodyMemory) -> None:
    with refused(413):
        memory.hold().add(8 * MIB + 1)
    with refused(413):
        BodyMemory().hold().check_size(MAX_BODY_BYTES + 1)
    whole = memory.hold()
    whole.add(8 * MIB)
    whole.end_arrival()
    with refused(503):
        memory.hold().add(MIB)
    whole.release()
    memory.hold().add(MIB)


def hold_in_turn(memory: BodyMemory, clock: Clock, *sizes: int) -> list[HeldBody]:
    """Bodies that began one after the other, and go on."""
    bodies = list[HeldBody]()
    for size in sizes:
        bodies.append(memory.hold(f"owner {len(bodies)}"))
        bodies[-1].add(size)
        clock.now_s += 0.1
    return bodies


def find_refused(bodies: list[HeldBody]) -> list[int]:
    return [index for index, body in enumerate(bodies) if body.refusal is not None]


def test_the_body_that_has_waited_longest_gives_way_to_a_newcomer(memory: BodyMemory, clock: Clock) -> None:
    bodies = hold_in_turn(memory, clock, 2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB - 1024)
    bodies[0].add(1024)
    reported = list[str]()
    bodies[1].on_refused = lambda: reported.append("at once")
    memory.hold().add(MIB)
    assert find_refused(bodies) == [1]
    assert reported == ["at once"]
    assert memory.num_bytes == 7 * MIB
    with refused(503):
        bodies[1].add(1)


def test_small_bodies_that_keep_their_rate_do_not_give_way_to_larger_ones(memory: BodyMemory, clock: Clock) -> None:
    bodies = hold_in_turn(memory, clock, MIB, 3 * MIB)
    with refused(503):
        memory.hold().add(5 * MIB)
    assert not find_refused(bodies)
    clock.now_s += 2  # beyond the lead that bytes of before may give
    memory.hold().add(5 * MIB)
    assert find_refused(bodies) == [0]


def test_a_whole_body_gives_way_to_nobody(memory: BodyMemory, clock: Clock) -> None:
    bodies = hold_in_turn(memory, clock, 4 * MIB, 4 * MIB)
    clock.now_s += 100
    bodies[0].end_arrival()
    memory.hold().add(MIB)
    assert find_refused(bodies) == [1]


def test_a_body_has_the_patience_that_its_bytes_earn(memory: BodyMemory, clock: Clock) -> None:
    body = memory.hold()
    assert body.num_s_left == 20
    clock.now_s += 15
    body.add(2048)
    assert body.num_s_left == 7
    body.add(4 * MIB)  # earns no hours
    assert body.num_s_left == 21
    for _ in range(100):  # its minimum rate for as long as it takes
        clock.now_s += 20
        body.add(20 * 1024)
        assert body.num_s_left >= 20


def test_the_slowest_of_those_below_the_rate_gives_its_connection_to_a_newcomer(
    memory: BodyMemory, clock: Clock
) -> None:
    assert memory.refuse_slowest() is None
    bodies = hold_in_turn(memory, clock, MIB, 1, 1, 1)
    assert memory.refuse_slowest() == "owner 1"
    assert memory.refuse_slowest() == "owner 2"
    bodies[3].end_arrival()
    assert memory.refuse_slowest() is None
    assert [body.refusal.status for body in bodies if body.refusal] == [408, 408]


def test_a_body_that_holds_nothing_gives_way_to_nobody(memory: BodyMemory, clock: Clock) -> None:
    hold_in_turn(memory, clock, 8 * MIB)[0].end_arrival()
    empty = memory.hold("empty")
    clock.now_s += 10
    with refused(503):
        memory.hold().add(MIB)
    assert empty.refusal is None


def test_nobody_gives_way_where_that_would_not_be_enough(memory: BodyMemory, clock: Clock) -> None:
    bodies = hold_in_turn(memory, clock, 5 * MIB, MIB, MIB)
    bodies[0].end_arrival()
    clock.now_s += 10
    with refused(503):
        memory.hold().add(4 * MIB)
    assert not find_refused(bodies)
    memory.hold().add(3 * MIB)
    assert find_refused(bodies) == [1, 2]


def test_a_body_is_slow_only_once_its_grace_is_over(clock: Clock) -> None:
    memory = BodyMemory(WITH_RESERVE, 1024, grace_s=2, clock=clock)
    body = memory.hold("on its way")
    clock.now_s += 2
    assert memory.refuse_slowest() is None
    clock.now_s += 0.1
    assert memory.refuse_slowest() == "on its way"
    assert body.refusal is not None


def hold_whole(memory: BodyMemory, namespace: str, num_bytes: int) -> HeldBody:
    body = memory.hold()
    body.namespace = namespace
    body.add(num_bytes)
    body.end_arrival()
    return body


def test_large_bodies_leave_an_eighth_of_the_memory_to_small_ones(memory: BodyMemory) -> None:
    hold_whole(memory, "", 8 * MIB)
    with refused(503):
        hold_whole(memory, "", MIB)
    hold_whole(memory, "", MIB - 1)
    assert memory.num_bytes == 9 * MIB - 1


@pytest.mark.parametrize("body_bytes", [MIB, 100_000])
def test_one_keys_whole_bodies_leave_another_key_as_much(clock: Clock, body_bytes: int) -> None:
    memory = BodyMemory(WITH_RESERVE, is_shared=True, clock=clock)
    num_held = 0
    with refused(503):
        for _ in range(1000):
            hold_whole(memory, "one", body_bytes)
            num_held += body_bytes
    assert num_held <= WITH_RESERVE // 2
    hold_whole(memory, "another", 130)
    hold_whole(memory, "another", MIB)


def test_where_a_keys_share_is_full_only_its_own_unfinished_bodies_give_way(clock: Clock) -> None:
    memory = BodyMemory(16 * MIB, is_shared=True, grace_s=0, clock=clock)
    bodies = hold_in_turn(memory, clock, 0, 0, 0)
    for body, namespace in zip(bodies, ("another", "one", "one"), strict=True):
        body.namespace = namespace
        body.add(3 * MIB)
        clock.now_s += 2
    newcomer = memory.hold()
    newcomer.namespace = "one"
    newcomer.add(2 * MIB)
    assert find_refused(bodies) == [1]
    assert memory.num_bytes == 8 * MIB


def test_what_could_never_be_a_keys_share_is_too_large(clock: Clock) -> None:
    memory = BodyMemory(WITH_RESERVE, is_shared=True, clock=clock)
    with refused(413):
        memory.hold().check_size(WITH_RESERVE // 2 + 1)


@pytest.mark.parametrize("ending", ["leaves", "is slow", "is too large", "is no JSON"])
def test_what_a_refused_body_took_is_free_before_python_collects_garbage(ending: str) -> None:
    memory = BodyMemory(WITH_RESERVE, 1 if ending != "is slow" else 1 << 30, patience_s=0.1)
    pieces = [b"[" * MIB] * (9 if ending == "is too large" else 6)

    async def receive() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": True}
        if ending == "is slow":
            await asyncio.Event().wait()
        if ending == "is no JSON":
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def run() -> None:
        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        tracemalloc.start()
        with memory.hold() as held, pytest.raises((ClientDisconnect, TilewiseError)):
            await asyncio.ensure_future(read_json(Request(scope, receive), lambda value: value, held))
        deadline = time.monotonic() + PATIENCE_S  # a thread may not have let go yet
        while tracemalloc.get_traced_memory()[0] > 3 * MIB:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        tracemalloc.stop()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
    assert memory.num_bytes == 0
