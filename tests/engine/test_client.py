"""Both clients around an engine that does what the test says."""

import logging
import threading
import time
from pathlib import Path

import pytest

from tests.engine.conftest import Open
from tests.engine.fakes import NUM_STEPS, WAIT_S, Heard
from tilewise.errors import EngineError
from tilewise.types import FinishReason, Request, StepOutput


def request(request_id: str = "r", gate: Path | None = None) -> Request:
    return Request(request_id, (1,), namespace=str(gate or ""))


def test_outputs_arrive_in_order_on_the_engines_thread_and_the_last_one_ends_it(open_client: Open) -> None:
    heard = Heard()
    client = open_client("answer_five")
    client.submit(request(), heard)
    assert heard.ended.wait(WAIT_S)
    assert [output.token_ids for output in heard.outputs] == [(0,), (1,), (2,), (3,), (4,)]
    assert heard.reasons == [FinishReason.STOP]
    assert heard.threads == {"tilewise-engine"}


def test_stats_follow_the_engine_and_stay_once_it_is_closed(open_client: Open) -> None:
    heard = Heard()
    client = open_client("answer_five")
    client.submit(request(), heard)
    deadline = time.monotonic() + WAIT_S
    while client.stats().get("messages") != 1:
        assert time.monotonic() < deadline
    client.submit(request("s"), heard)
    client.close()
    assert client.stats()["messages"] == 2


def test_every_one_of_many_requests_from_many_threads_ends_once(open_client: Open) -> None:
    sinks = {f"r{number}": Heard() for number in range(40)}
    client = open_client("answer_five")
    threads = [
        threading.Thread(target=lambda name=name, sink=sink: client.submit(request(name), sink))
        for name, sink in sinks.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sink.ended.wait(WAIT_S) for sink in sinks.values())
    client.close()
    assert all(sink.reasons == [FinishReason.STOP] for sink in sinks.values())
    assert all({output.request_id for output in sink.outputs} == {name} for name, sink in sinks.items())


def test_requests_that_share_steps_hear_every_step_in_order(open_client: Open) -> None:
    sinks = {f"r{number}": Heard() for number in range(64)}
    client = open_client("stay_silent")
    for name, sink in sinks.items():
        client.submit(request(name), sink)
    client.abort("all")
    assert all(sink.ended.wait(WAIT_S) for sink in sinks.values())
    for name, sink in sinks.items():
        assert [output.token_ids for output in sink.outputs] == [(step,) for step in range(NUM_STEPS)]
        assert {output.request_id for output in sink.outputs} == {name}


def test_an_abort_reaches_the_core_after_its_request_and_an_unknown_one_does_no_harm(open_client: Open) -> None:
    heard = Heard()
    client = open_client("stay_silent")
    client.abort("nobody")
    client.submit(request(), heard)
    client.abort("r")
    assert heard.ended.wait(WAIT_S)
    assert heard.outputs == [StepOutput("r", finish_reason=FinishReason.ABORT, error="abort nobody, submit r, abort r")]


def test_closing_ends_what_runs_with_abort_and_what_ended_is_left_alone(open_client: Open) -> None:
    done, running = Heard(), Heard()
    client = open_client("answer_done")
    client.submit(request("done"), done)
    client.submit(request("running"), running)
    client.close()
    assert done.reasons == [FinishReason.STOP]
    assert running.reasons == [FinishReason.ABORT]
    assert running.outputs[-1].error is None
    client.close()
    assert running.reasons == [FinishReason.ABORT]


def test_a_closed_engine_is_not_alive_and_refuses_requests_but_not_aborts(open_client: Open) -> None:
    client = open_client("stay_silent")
    assert client.is_alive()
    client.close()
    assert not client.is_alive()
    client.abort("r")
    with pytest.raises(EngineError, match="closed"):
        client.submit(request(), Heard())


def test_a_crash_ends_what_runs_with_error_and_the_client_says_it_is_dead(
    open_client: Open, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    client = open_client("crash")
    with caplog.at_level(logging.ERROR):
        client.submit(request(), heard)
        assert heard.ended.wait(WAIT_S)
    client.close()
    assert heard.reasons == [FinishReason.ERROR]
    error = heard.outputs[-1].error
    assert error
    assert "0x" not in error, "what the core said stays in the log"
    assert "RuntimeError: at address 0x7f00" in caplog.text
    assert not client.is_alive()
    with pytest.raises(EngineError):
        client.submit(request("s"), Heard())


def test_a_request_that_meets_the_crash_ends_too_or_is_refused(open_client: Open, tmp_path: Path) -> None:
    client = open_client("crash_at_gate")
    first, late = Heard(), Heard()
    client.submit(request("first", tmp_path / "go"), first)
    assert first.started.wait(WAIT_S)
    client.submit(request("late"), late)
    (tmp_path / "go").touch()
    assert first.ended.wait(WAIT_S)
    assert late.ended.wait(WAIT_S)
    assert first.reasons == late.reasons == [FinishReason.ERROR]


def test_a_sink_that_raises_does_not_end_the_engine(open_client: Open, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[StepOutput] = []

    def raise_always(output: StepOutput) -> None:
        calls.append(output)
        raise ValueError("a front end's fault")

    heard = Heard()
    client = open_client("answer_five")
    with caplog.at_level(logging.ERROR):
        client.submit(request("bad"), raise_always)
        client.submit(request("good"), heard)
        assert heard.ended.wait(WAIT_S)
        assert client.is_alive()
    assert len(calls) == 5
    assert heard.reasons == [FinishReason.STOP]


def test_an_id_in_use_is_refused_and_may_be_used_again_once_it_ended(open_client: Open, tmp_path: Path) -> None:
    heard, again = Heard(), Heard()
    gate = tmp_path / "go"
    client = open_client("answer_at_gate")
    client.submit(request(gate=gate), heard)
    with pytest.raises(EngineError, match="'r'"):
        client.submit(request(gate=gate), again)
    gate.touch()
    assert heard.ended.wait(WAIT_S)
    client.submit(request(gate=gate), again)
    assert again.ended.wait(WAIT_S)
    assert heard.reasons == again.reasons == [FinishReason.STOP]


def test_requests_that_are_submitted_together_are_all_taken_or_none(open_client: Open) -> None:
    sinks = {name: Heard() for name in ("r", "s", "t")}
    client = open_client("answer_five")
    with pytest.raises(EngineError, match="'r'"):
        client.submit(request("r"), sinks["r"], [(request("s"), sinks["s"]), (request("r"), sinks["r"])])
    client.submit(request("r"), sinks["r"], [(request(name), sinks[name]) for name in ("s", "t")])
    assert all(sink.ended.wait(WAIT_S) for sink in sinks.values())
    assert all(sink.reasons == [FinishReason.STOP] for sink in sinks.values())


def test_a_sink_may_submit_abort_and_close(open_client: Open) -> None:
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

    client = open_client("answer_five")
    client.submit(request("first"), chain)
    assert closed.wait(WAIT_S)
    client.close()
    assert follow_up.reasons == [FinishReason.STOP]
