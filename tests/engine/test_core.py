import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.tiny import (
    BLOCK_SIZE,
    GREEDY,
    KV_BLOCK_BYTES,
    MODEL,
    answer,
    make_core,
    make_picture,
    make_request,
    run,
)
from tests.processes import PATIENCE_S
from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore, build_core, find_device
from tilewise.engine.in_process import InProcessClient
from tilewise.engine.launch import find_checkpoint, launch_engine
from tilewise.engine.messages import Abort, Submit
from tilewise.errors import CapacityError, ConfigError
from tilewise.types import FinishReason, Request, StepOutput


def break_once(core: EngineCore, part: str, step: int) -> None:
    """Let a part of the model raise on its `step`-th call."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise RuntimeError("CUDA error at 0x7f00")

    core.runner.model.get_submodule(part).register_forward_pre_hook(count)


@pytest.mark.parametrize(("part", "step"), [("tower", 1), ("decoder", 1), ("decoder", 3), ("decoder", 4)])
def test_a_step_that_raises_fails_its_requests_only_and_the_next_one_is_answered(
    part: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    core = make_core(max_batch_size=2)
    requests = [make_request(f"r{n}", [[1, n], make_picture(n, 2, 1), [3]]) for n in range(4)]
    expected = answer(make_core(), requests)
    break_once(core, part, step)
    with caplog.at_level(logging.ERROR):
        heard = run(core, requests)
    reasons = {request_id: outputs[-1].finish_reason for request_id, outputs in heard.items()}
    assert reasons == {f"r{n}": FinishReason.ERROR if n < 2 else FinishReason.LENGTH for n in range(4)}
    for outputs in heard.values():
        error = outputs[-1].error
        assert (error is None) == (outputs[-1].finish_reason is FinishReason.LENGTH)
        assert "0x" not in (error or "")
    core.scheduler.check_integrity()
    assert core.scheduler.kv.pool.num_held == 0
    assert answer(core, requests) == expected, "nothing that the broken step left behind is used"


def test_a_request_that_is_too_long_ends_with_an_error_and_the_others_do_not() -> None:
    core = make_core(session_len=32)
    heard = run(core, [make_request("long", [[1] * 32]), make_request("short", [[1] * 8])])
    (refusal,) = heard["long"]
    assert refusal.finish_reason is FinishReason.ERROR
    assert refusal.error
    assert "32" in refusal.error
    assert heard["short"][-1].finish_reason is FinishReason.LENGTH


def test_of_requests_that_come_together_each_is_taken_or_refused_on_its_own() -> None:
    core = make_core(session_len=32)
    taken, refused = make_request("taken", [[1] * 8]), make_request("refused", [[1] * 32])
    (refusal,) = core.receive(Submit((taken, refused, replace(taken, request_id="also"))))
    assert (refusal.request_id, refusal.finish_reason) == ("refused", FinishReason.ERROR)
    assert [sequence.request.request_id for sequence in core.scheduler.waiting] == ["taken", "also"]


def test_an_abort_frees_everything_at_once_and_unknown_ids_mean_nothing() -> None:
    core = make_core()
    core.receive(Submit((make_request("r", [[1, 2], make_picture(1, 2, 2)]),)))
    core.receive(Submit((make_request("waiting", [[1, 2]]),)))
    core.step()
    assert core.scheduler.kv.pool.num_held > 0
    (output,) = core.receive(Abort("r"))
    assert output.finish_reason is FinishReason.ABORT
    core.receive(Abort("waiting"))
    assert core.receive(Abort("r")) == core.receive(Abort("nobody")) == []
    assert core.scheduler.kv.pool.num_held == 0
    assert not core.has_work
    assert core.step() == []
    assert core.runner.states.keys() == {0, 1}
    answer(core, [make_request("s", [[1]])])
    assert core.runner.states.keys() == {2}, "the sampler forgets who ended"


def test_stats_count_what_was_done() -> None:
    core = make_core()
    request = make_request("r", [[1, 2], make_picture(1, 2, 2), [3]])
    answer(core, [request])
    stats = core.stats()
    assert stats["requests_opened"] == stats["requests_ended"] == 1
    assert stats["tokens_generated"] == GREEDY.max_new_tokens
    assert stats["tokens_computed"] == len(request.token_ids) + GREEDY.max_new_tokens - 1
    assert stats["tiles_encoded"] == 5
    assert stats["steps"] == GREEDY.max_new_tokens + 1, "five tiles at four a step, then one token a step"
    assert stats["requests_running"] == stats["requests_waiting"] == stats["blocks_held"] == 0
    assert stats["blocks"] == 256
    assert min(stats["tower_s"], stats["prefill_s"], stats["decode_s"]) > 0.0


def test_a_real_engine_on_a_thread_answers_many_and_aborts_one() -> None:
    client = InProcessClient(make_core(session_len=400))
    requests = [make_request(f"r{n}", [[1, n], make_picture(n)]) for n in range(8)]
    endless = make_request("endless", [[1]], replace(GREEDY, max_new_tokens=10_000))
    heard: dict[str, list[StepOutput]] = {request.request_id: [] for request in [endless, *requests]}
    ended = threading.Semaphore(0)

    def listen(output: StepOutput) -> None:
        heard[output.request_id].append(output)
        if output.finish_reason is not None:
            ended.release()

    for request in [endless, *requests]:
        client.submit(request, listen)
    client.abort("endless")
    assert all(ended.acquire(timeout=PATIENCE_S) for _ in heard)
    client.close()
    assert heard["endless"][-1].finish_reason in (FinishReason.ABORT, FinishReason.LENGTH)
    ids = {name: [i for output in outputs for i in output.token_ids] for name, outputs in heard.items()}
    assert {name: ids[name] for name in ids if name != "endless"} == answer(make_core(), requests)


@pytest.fixture(scope="module")
def embedded() -> EngineConfig:
    return EngineConfig(device="cpu", kv_cache_bytes=64 << 20, session_len=2048)


@pytest.mark.parametrize("in_process", [True, False])
def test_the_embedded_model_is_launched_and_answers(embedded: EngineConfig, in_process: bool) -> None:
    engine = launch_engine(find_checkpoint(None, embedded), embedded, in_process=in_process, num_tokens=None)
    assert engine.resolved.session_len == 2048
    outputs: list[StepOutput] = []
    ended = threading.Event()

    def listen(output: StepOutput) -> None:
        outputs.append(output)
        if output.finish_reason is not None:
            ended.set()

    engine.client.submit(Request("r", (1, 5, 9), generation=replace(GREEDY, max_new_tokens=3)), listen)
    assert ended.wait(PATIENCE_S)
    engine.client.close()
    assert [len(output.token_ids) for output in outputs] == [1, 1, 1]
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_dummy_weights_are_random_say_so_and_repeat() -> None:
    config = EngineConfig(
        device="cpu", load_format="dummy", kv_cache_bytes=32 * KV_BLOCK_BYTES * 4, image_cache_bytes=0
    )
    first, resolved = build_core(Path("nowhere"), MODEL, config)
    second, _ = build_core(Path("nowhere"), MODEL, config)
    assert resolved.model.is_random
    weights = [dict(core.runner.model.named_parameters()) for core in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    matrices = [weight for weight in weights[0].values() if weight.dim() > 1]
    assert all(weight.std() > 0.0 for weight in matrices)
    assert len({tuple(weight.flatten()[:4].tolist()) for weight in matrices}) == len(matrices), "no two are alike"


def test_a_session_that_the_cache_cannot_hold_is_refused_if_asked_for_and_shortened_if_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(CapacityError, match="session_len=512"):
        make_core(num_blocks=8, session_len=512)
    with caplog.at_level(logging.WARNING):
        core = make_core(num_blocks=8)
    assert core.scheduler.budgets.session_len == 8 * BLOCK_SIZE
    assert "128" in caplog.text
    with pytest.raises(CapacityError):
        build_core(Path(), MODEL, EngineConfig(device="cpu", load_format="dummy", kv_cache_bytes=1))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cuda:99", "cpu:0", "", "cuda:"])
def test_a_device_that_is_not_here_is_refused_by_name(name: str) -> None:
    if name == "cuda:" and torch.cuda.is_available():
        pytest.skip("an empty number means the first device")
    with pytest.raises(ConfigError) as refusal:
        find_device(name)
    assert refusal.value.param == "device"


def test_the_cpu_is_found_by_name() -> None:
    assert find_device("cpu").name == "cpu"
