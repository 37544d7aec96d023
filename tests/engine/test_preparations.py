"""What is prepared for one request holds up no other: the loop goes on while a thread cuts or compiles."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.tiny import GREEDY, TILE_SIZE, answer, make_core, make_picture, make_request
from tests.processes import PATIENCE_S
from tilewise.engine.core import EngineCore
from tilewise.engine.messages import Abort, Inbox, Shutdown, Submit
from tilewise.engine.preparations import Preparations
from tilewise.errors import EngineError
from tilewise.inputs.text.grammar import Guide
from tilewise.runner.image_cutter import ImageCutter
from tilewise.types import FinishReason, PreparedImage, Request, StepOutput

LARGE = make_picture(3, 2, 2)
FORM = '{"type":"json_object"}'


class Gate:
    """Work that begins, says so, and ends when it is let through."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.begun: list[Any] = []
        self.has_begun = threading.Event()
        self._work, self._is_open = work, threading.Event()

    def __call__(self, given: Any) -> Any:
        self.begun.append(given)
        self.has_begun.set()
        assert self._is_open.wait(PATIENCE_S)
        return self._work(given)

    def open(self) -> None:
        self._is_open.set()


class AnyGuide(Guide):
    """Allows everything."""

    def __init__(self) -> None:
        pass

    def fill(self, mask: Any, stop_ids: Any, banned_ids: Any, *, is_short: bool) -> None:
        mask[:] = 0xFF

    def consume(self, token_id: int) -> None:
        pass


def cut(image: PreparedImage) -> Tensor:
    return ImageCutter(torch.device("cpu"), TILE_SIZE).cut(image)


@pytest.fixture
def gates() -> Iterator[tuple[Gate, Gate]]:
    both = Gate(cut), Gate(lambda form: AnyGuide())
    yield both
    for gate in both:
        gate.open()


@pytest.fixture
def core(gates: tuple[Gate, Gate]) -> EngineCore:
    """An engine to which everything but the smallest picture is large."""
    made = make_core()
    made.scheduler.budgets = replace(made.scheduler.budgets, max_step_pixels=TILE_SIZE**2)
    return EngineCore(made.scheduler, made.runner, *gates)


def ask_for_form(request_id: str) -> Request:
    return make_request(request_id, [[1, 2]], replace(GREEDY, response_format=FORM))


def submit(core: EngineCore, *requests: Request) -> None:
    assert core.receive(Submit(requests)) == []


def step_until(core: EngineCore, is_done: Callable[[list[StepOutput]], bool]) -> list[StepOutput]:
    """Step until what was heard says so."""
    heard: list[StepOutput] = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        heard += core.step()
        if is_done(heard):
            return heard
    raise AssertionError("it never came")


def has_ended(*request_ids: str) -> Callable[[list[StepOutput]], bool]:
    return lambda heard: {o.request_id for o in heard if o.finish_reason is not None} >= set(request_ids)


def begun(gate: Gate) -> Callable[[list[StepOutput]], bool]:
    return lambda heard: bool(gate.begun)


def test_a_large_picture_is_cut_beside_the_loop_and_its_answer_is_the_same(
    core: EngineCore, gates: tuple[Gate, Gate]
) -> None:
    picture, text = make_request("picture", [[1], LARGE, [2]]), make_request("text", [[1, 2]])
    submit(core, picture, text)
    heard = step_until(core, has_ended("text"))
    assert not has_ended("picture")(heard)
    assert not core.runner.cut_images
    gates[0].open()
    heard = step_until(core, has_ended("picture"))
    ids = [token_id for output in heard for token_id in output.token_ids if output.request_id == "picture"]
    assert ids == answer(make_core(), [picture])["picture"]
    assert [image.digest for image in gates[0].begun] == [LARGE.digest], "it was cut once"
    assert core.runner.cut_images == {}, "and its tiles are given back"


def test_a_small_picture_is_cut_in_the_step_itself(core: EngineCore, gates: tuple[Gate, Gate]) -> None:
    request = make_request("small", [[1], make_picture(5), [2]])
    assert answer(core, [request]) == answer(make_core(), [request])
    assert gates[0].begun == []


def test_what_cancelled_requests_asked_for_is_not_cut(core: EngineCore, gates: tuple[Gate, Gate]) -> None:
    requests = [make_request(f"r{n}", [[1, n], make_picture(10 + n, 2, 2)]) for n in range(16)]
    submit(core, *requests)
    step_until(core, begun(gates[0]))
    for request in requests:
        core.receive(Abort(request.request_id))
    assert core.step() == []
    gates[0].open()
    other = make_request("other", [[1], LARGE])
    submit(core, other)
    step_until(core, has_ended("other"))
    assert len(gates[0].begun) == 2, "the first had begun; of the others only the one that is wanted"


def test_the_sampler_never_hears_of_a_request_that_left_before_its_first_step(core: EngineCore) -> None:
    submit(core, make_request("gone", [LARGE, [1]]))
    assert core.step() == []
    assert [sequence.request.request_id for sequence in core.scheduler.running] == ["gone"]
    core.receive(Abort("gone"))
    submit(core, make_request("text", [[1, 2]]))
    step_until(core, has_ended("text"))
    assert len(core.runner.states) == 1


def test_a_picture_that_cannot_be_cut_fails_its_own_requests_alone(caplog: pytest.LogCaptureFixture) -> None:
    def fail(image: PreparedImage) -> Tensor:
        raise RuntimeError("at 0x7f00")

    made = make_core()
    made.scheduler.budgets = replace(made.scheduler.budgets, max_step_pixels=TILE_SIZE**2)
    core = EngineCore(made.scheduler, made.runner, fail, lambda form: AnyGuide())
    submit(core, make_request("large", [[1], LARGE]), make_request("same", [[2], LARGE]), make_request("text", [[1]]))
    with caplog.at_level(logging.ERROR):
        heard = step_until(core, has_ended("large", "same", "text"))
    last = {output.request_id: output for output in heard if output.finish_reason is not None}
    assert {name: output.finish_reason for name, output in last.items()} == {
        "large": FinishReason.ERROR,
        "same": FinishReason.ERROR,
        "text": FinishReason.LENGTH,
    }
    assert "picture" in (last["large"].error or "")
    assert "0x" not in (last["large"].error or "")
    assert "0x7f00" in caplog.text
    core.scheduler.check_integrity()
    assert not core.has_work


def test_a_request_waits_outside_the_batch_until_its_form_is_compiled(
    core: EngineCore, gates: tuple[Gate, Gate]
) -> None:
    submit(core, ask_for_form("form"), make_request("text", [[1, 2]]))
    step_until(core, has_ended("text"))
    assert gates[1].begun == [FORM]
    assert list(core.scheduler.unready) == ["form"]
    gates[1].open()
    heard = step_until(core, has_ended("form"))
    assert heard[-1].finish_reason is FinishReason.LENGTH
    assert core.runner.guides == {}


def test_a_form_that_is_compiled_for_nobody_is_dropped(core: EngineCore, gates: tuple[Gate, Gate]) -> None:
    submit(core, ask_for_form("gone"), ask_for_form("never"), ask_for_form("kept"))
    step_until(core, begun(gates[1]))
    core.receive(Abort("gone"))
    core.receive(Abort("never"))
    gates[1].open()
    step_until(core, has_ended("kept"))
    assert gates[1].begun == [FORM, FORM], "of the first, which had begun, and of the one that was kept"
    assert core.runner.guides == {}
    assert not core.has_work


@pytest.mark.parametrize(
    ("error", "told"), [(EngineError("it does not compile"), "it does not compile"), (ValueError("0x1"), "held to")]
)
def test_a_form_that_does_not_compile_ends_its_request_with_the_reason(error: Exception, told: str) -> None:
    def fail(form: str) -> Guide:
        raise error

    made = make_core()
    core = EngineCore(made.scheduler, made.runner, cut, fail)
    submit(core, ask_for_form("form"), make_request("text", [[1, 2]]))
    heard = step_until(core, has_ended("form", "text"))
    last = {output.request_id: output for output in heard if output.finish_reason is not None}
    assert last["form"].finish_reason is FinishReason.ERROR
    assert told in (last["form"].error or "")
    assert "0x1" not in (last["form"].error or "")
    assert last["text"].finish_reason is FinishReason.LENGTH


def test_prompts_that_come_back_to_each_others_pictures_never_wait_for_one_another(
    core: EngineCore, gates: tuple[Gate, Gate]
) -> None:
    core.scheduler.cuts.max_tiles = 4
    first, second = LARGE, make_picture(4, 2, 2)
    requests = [
        make_request("a", [[1], first, [2], second, [3], first]),
        make_request("b", [[2], second, [2], first, [3], second]),
    ]
    gates[0].open()
    assert answer(core, requests) == answer(make_core(), requests)


def test_an_engine_that_has_nothing_left_to_do_keeps_nothing_that_was_cut(
    core: EngineCore, gates: tuple[Gate, Gate]
) -> None:
    submit(core, *(make_request(f"r{n}", [[1, n], make_picture(10 + n, 2, 2)]) for n in range(5)))
    step_until(core, begun(gates[0]))
    for number in range(5):
        core.receive(Abort(f"r{number}"))
    assert not core.has_work
    gates[0].open()
    answer(core, [make_request("one", [[1], LARGE], replace(GREEDY, max_new_tokens=1))])
    assert len(gates[0].begun) == 2, "what had begun when they left, and the last one's"
    assert core.runner.cut_images == {}


def test_the_loop_sleeps_until_something_is_prepared_and_then_goes_on(
    core: EngineCore, gates: tuple[Gate, Gate]
) -> None:
    inbox: Inbox = queue.SimpleQueue()
    heard: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    loop = threading.Thread(target=core.run_forever, args=(inbox, lambda outputs: [heard.put(o) for o in outputs]))
    loop.start()
    inbox.put(Submit((ask_for_form("form"),)))
    assert gates[1].has_begun.wait(PATIENCE_S)
    inbox.put(Submit((make_request("text", [[1, 2]]),)))
    while heard.get(timeout=PATIENCE_S).finish_reason is None:
        pass
    gates[1].open()
    reasons = [output.finish_reason for output in (heard.get(timeout=PATIENCE_S) for _ in range(8))]
    assert reasons[-1] is FinishReason.LENGTH
    inbox.put(Shutdown())
    loop.join(PATIENCE_S)
    assert not loop.is_alive()


def test_what_has_ended_is_taken_once_and_what_was_cancelled_never() -> None:
    ended = threading.Event()
    preparations: Preparations[str, int] = Preparations("test", ended.set)
    gate = Gate(lambda number: number)
    for number, key in enumerate(("a", "b", "c")):
        preparations.start(key, lambda number=number: gate(number))
    preparations.cancel("b")
    assert preparations.is_busy
    gate.open()
    taken: list[tuple[str, int | Exception]] = []
    while len(taken) < 2:
        assert ended.wait(PATIENCE_S)
        ended.clear()
        taken += preparations.take_ended()
    assert taken == [("a", 0), ("c", 2)]
    assert not preparations.is_busy
    assert preparations.take_ended() == []
    preparations.close()


def test_a_key_may_be_begun_again_while_its_cancelled_work_still_runs() -> None:
    ended = threading.Event()
    preparations: Preparations[str, int] = Preparations("test", ended.set)
    gate = Gate(lambda number: number)
    preparations.start("a", lambda: gate(1))
    assert gate.has_begun.wait(PATIENCE_S)
    preparations.cancel("a")
    preparations.start("a", lambda: gate(2))
    gate.open()
    taken: list[tuple[str, int | Exception]] = []
    while not taken:
        assert ended.wait(PATIENCE_S)
        ended.clear()
        taken += preparations.take_ended()
    assert taken == [("a", 2)]
    preparations.close()
