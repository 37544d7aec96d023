"""The in-process client around a core that does what the test says."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tilewise.engine.client import InProcessClient, OnOutput
from tilewise.engine.messages import Abort, Message, Shutdown, Submit
from tilewise.errors import EngineError
from tilewise.types import FinishReason, Request, StepOutput

WAIT_S = 30


class FakeCore:
    """Hands every message to `on_message` until told to shut down."""

    def __init__(self, on_message: Callable[[Message, OnOutput], None]) -> None:
        self.on_message = on_message
        self.num_messages = 0
        self.is_closed = False

    def run_forever(self, inbox: "queue.SimpleQueue[Message]", emit: OnOutput) -> None:
        while not isinstance(message := inbox.get(), Shutdown):
            self.num_messages += 1
            self.on_message(message, emit)

    def stats(self) -> dict[str, float]:
        return {"messages": self.num_messages}

    def close(self) -> None:
        self.is_closed = True


class Heard:
    """A sink that keeps what it is told; `ended` is set by an output with a finish reason."""

    def __init__(self) -> None:
        self.outputs: list[StepOutput] = []
        self.threads: set[str] = set()
        self.ended = threading.Event()

    def __call__(self, output: StepOutput) -> None:
        self.outputs.append(output)
        self.threads.add(threading.current_thread().name)
        if output.finish_reason is not None:
            self.ended.set()

    @property
    def reasons(self) -> list[FinishReason]:
        return [output.finish_reason for output in self.outputs if output.finish_reason is not None]


@contextmanager
def open_client(on_message: Callable[[Message, OnOutput], None]) -> Iterator[InProcessClient]:
    client = InProcessClient(FakeCore(on_message))
    yield client
    client.close()


def request(request_id: str = "r") -> Request:
    return Request(request_id, (1,))


def answer_five(message: Message, emit: OnOutput) -> None:
    assert isinstance(message, Submit)
    for number in range(5):
        emit(
            StepOutput(message.request.request_id, (number,), finish_reason=FinishReason.STOP if number == 4 else None)
        )


def stay_silent(message: Message, emit: OnOutput) -> None:
    pass


def test_outputs_arrive_in_order_on_the_engines_thread_and_the_last_one_ends_it() -> None:
    heard = Heard()
    with open_client(answer_five) as client:
        client.submit(request(), heard)
        assert heard.ended.wait(WAIT_S)
        assert client.stats() == {"messages": 1}
    assert [output.token_ids for output in heard.outputs] == [(0,), (1,), (2,), (3,), (4,)]
    assert heard.reasons == [FinishReason.STOP]
    assert heard.threads == {"tilewise-engine"}


def test_every_one_of_many_requests_from_many_threads_ends_once() -> None:
    sinks = {f"r{number}": Heard() for number in range(40)}
    with open_client(answer_five) as client:
        threads = [
            threading.Thread(target=lambda name=name, sink=sink: client.submit(request(name), sink))
            for name, sink in sinks.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(sink.ended.wait(WAIT_S) for sink in sinks.values())
    assert all(sink.reasons == [FinishReason.STOP] for sink in sinks.values())
    assert all({output.request_id for output in sink.outputs} == {name} for name, sink in sinks.items())


def test_an_abort_reaches_the_core_after_its_request_and_an_unknown_one_does_no_harm() -> None:
    messages: list[Message] = []

    def abort_when_asked(message: Message, emit: OnOutput) -> None:
        messages.append(message)
        if isinstance(message, Abort):
            emit(StepOutput(message.request_id, finish_reason=FinishReason.ABORT))

    heard = Heard()
    with open_client(abort_when_asked) as client:
        client.abort("nobody")
        client.submit(request(), heard)
        client.abort("r")
        assert heard.ended.wait(WAIT_S)
    assert messages == [Abort("nobody"), Submit(request()), Abort("r")]
    assert heard.reasons == [FinishReason.ABORT]


def test_closing_ends_what_runs_with_abort_and_what_ended_is_left_alone() -> None:
    done, running = Heard(), Heard()

    def answer_one(message: Message, emit: OnOutput) -> None:
        if isinstance(message, Submit) and message.request.request_id == "done":
            answer_five(message, emit)

    client = InProcessClient(FakeCore(answer_one))
    client.submit(request("done"), done)
    client.submit(request("running"), running)
    client.close()
    assert done.reasons == [FinishReason.STOP]
    assert running.reasons == [FinishReason.ABORT]
    assert running.outputs[-1].error is None
    client.close()
    assert running.reasons == [FinishReason.ABORT]


def test_a_closed_engine_is_not_alive_and_refuses_requests_but_not_aborts() -> None:
    client = InProcessClient(FakeCore(stay_silent))
    assert client.is_alive()
    client.close()
    assert not client.is_alive()
    client.abort("r")
    with pytest.raises(EngineError, match="closed"):
        client.submit(request(), Heard())


def test_a_crash_ends_what_runs_with_error_and_the_client_says_it_is_dead(caplog: pytest.LogCaptureFixture) -> None:
    def crash(message: Message, emit: OnOutput) -> None:
        raise RuntimeError("at address 0x7f00")

    heard = Heard()
    client = InProcessClient(FakeCore(crash))
    with caplog.at_level(logging.ERROR):
        client.submit(request(), heard)
        assert heard.ended.wait(WAIT_S)
    client.close()
    assert heard.reasons == [FinishReason.ERROR]
    error = heard.outputs[-1].error
    assert error
    assert "0x" not in error, "what the core said stays in the log"
    assert not client.is_alive()
    with pytest.raises(EngineError):
        client.submit(request("s"), Heard())


def test_a_request_that_meets_the_crash_ends_too_or_is_refused() -> None:
    crashing, going = threading.Event(), threading.Event()

    def crash(message: Message, emit: OnOutput) -> None:
        crashing.set()
        assert going.wait(WAIT_S)
        raise RuntimeError

    client = InProcessClient(FakeCore(crash))
    first, late = Heard(), Heard()
    client.submit(request(), first)
    assert crashing.wait(WAIT_S)
    client.submit(request("late"), late)
    going.set()
    assert first.ended.wait(WAIT_S)
    assert late.ended.wait(WAIT_S)
    assert first.reasons == late.reasons == [FinishReason.ERROR]
    client.close()


def test_a_sink_that_raises_does_not_end_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[StepOutput] = []

    def raise_always(output: StepOutput) -> None:
        calls.append(output)
        raise ValueError("a front end's fault")

    heard = Heard()
    with caplog.at_level(logging.ERROR), open_client(answer_five) as client:
        client.submit(request("bad"), raise_always)
        client.submit(request("good"), heard)
        assert heard.ended.wait(WAIT_S)
        assert client.is_alive()
    assert len(calls) == 5
    assert heard.reasons == [FinishReason.STOP]


def test_an_id_in_use_is_refused_and_may_be_used_again_once_it_ended() -> None:
    heard, again = Heard(), Heard()
    go = threading.Event()

    def answer_later(message: Message, emit: OnOutput) -> None:
        assert go.wait(WAIT_S)
        answer_five(message, emit)

    with open_client(answer_later) as client:
        client.submit(request(), heard)
        with pytest.raises(EngineError, match="'r'"):
            client.submit(request(), again)
        go.set()
        assert heard.ended.wait(WAIT_S)
        client.submit(request(), again)
        assert again.ended.wait(WAIT_S)
    assert heard.reasons == again.reasons == [FinishReason.STOP]


def test_a_sink_may_submit_abort_and_close() -> None:
    follow_up = Heard()
    closed = threading.Event()

    def chain(output: StepOutput) -> None:
        if output.finish_reason is not None:
            client.submit(request("second"), finish)
            client.abort("second")

    def finish(output: StepOutput) -> None:
        follow_up(output)
        if output.finish_reason is not None:
            client.close()
            closed.set()

    def answer_submits(message: Message, emit: OnOutput) -> None:
        if isinstance(message, Submit):
            answer_five(message, emit)

    client = InProcessClient(FakeCore(answer_submits))
    client.submit(request("first"), chain)
    assert closed.wait(WAIT_S)
    client.close()
    assert follow_up.reasons == [FinishReason.STOP]
