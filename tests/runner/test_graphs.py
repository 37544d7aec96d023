"""Captured steps say what the same steps say as single operations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.tiny import GREEDY, answer, make_core, make_picture, make_request
from tests.oracle.driving import RecordedGraphs
from tilewise.config import DecoderConfig
from tilewise.engine.core import EngineCore
from tilewise.kernels import PrefillChunk
from tilewise.runner.batch import StepLayout, build_batch, lay_out
from tilewise.runner.forward import compute_logits
from tilewise.runner.graphs import CapturedStep, StepGraphs, StepShape, choose_max_lonely_tokens
from tilewise.runner.runner import Runner

LONG = replace(GREEDY, max_new_tokens=40)
NO_SAMPLES = torch.zeros(8, dtype=torch.int64)  # of the step before, which the host knows already


def make_requests(number: int) -> list[object]:
    parts = [[[n + 1, 7], make_picture(n, 1 + n % 2)] for n in range(number)]
    return [make_request(f"r{n}", [*own, [3] * (1 + 9 * n)], LONG) for n, own in enumerate(parts)]


def start_decoding(number: int) -> tuple[Runner, StepLayout]:
    """An engine whose next step is a pure decode, and that step."""
    core = make_core()
    for request in make_requests(number):
        core.scheduler.add(request)
    while True:
        plan = core.scheduler.schedule()
        assert plan is not None
        layout = lay_out(plan, core.scheduler.budgets.block_size)
        if len(layout.lengths) == number and not layout.chunks:
            return core.runner, layout
        core.scheduler.commit(plan, core.runner.run(plan))


@pytest.mark.parametrize("size", [3, 8])
def test_a_padded_step_gives_the_logits_of_its_rows_and_writes_what_they_write(size: int) -> None:
    runner, layout = start_decoding(3)
    with torch.inference_mode():
        before = runner.caches.k.clone(), runner.caches.v.clone()
        expected_logits = eager_logits(runner, layout)
        after = runner.caches.k.clone(), runner.caches.v.clone()
        runner.caches.k.copy_(before[0])
        runner.caches.v.copy_(before[1])
        latest = torch.zeros(8, dtype=torch.int64)
        graphs = StepGraphs(runner.model, runner.caches, 32, latest)
        inputs = graphs.create_inputs(StepShape(size, size, size))
        graphs.fill(inputs, layout)
        logits = graphs.step(inputs.batch)
        assert torch.allclose(logits[:3], expected_logits, atol=1e-4, rtol=1e-4)
        assert latest[:3].tolist() == expected_logits.argmax(-1).tolist()
        for cache, expected in zip((runner.caches.k, runner.caches.v), after, strict=True):
            assert torch.allclose(cache, expected, atol=1e-5, equal_nan=True)
        # The step after takes these three from the device.
        pending = replace(layout, token_ids=layout.token_ids * 0, sources=layout.sources * 0 + [2, 0, 1])
        chosen = latest[:3].clone()
        graphs.fill(inputs, pending)
        expected_logits = eager_logits(runner, replace(layout, token_ids=chosen[[2, 0, 1]].numpy()))
        latest[:3] = chosen
        assert torch.allclose(graphs.step(inputs.batch)[:3], expected_logits, atol=1e-4, rtol=1e-4)


def eager_logits(runner: Runner, layout: StepLayout) -> torch.Tensor:
    return compute_logits(runner.model, runner.caches, build_batch(layout, runner.device), NO_SAMPLES)


def test_a_step_is_replayed_by_the_smallest_graph_that_holds_it_and_its_chunks() -> None:
    runner, layout = start_decoding(3)
    graphs = StepGraphs(runner.model, runner.caches, 32, NO_SAMPLES)
    assert graphs.find(layout) is None, "nothing was captured"
    shapes = [StepShape(2, 2, 2), StepShape(4, 4, 4), StepShape(8, 8, 8), StepShape(64, 8, 8, 2)]
    graphs.captured = [CapturedStep(None, graphs.create_inputs(shape)) for shape in shapes]

    def found(layout: StepLayout) -> int | None:
        captured = graphs.find(layout)
        return None if captured is None else captured.inputs.shape.num_tokens

    assert found(layout) == 4
    chunk = PrefillChunk(3, 0, 30)
    wide = {name: np.resize(getattr(layout, name), 33) for name in ("token_ids", "positions", "slots", "sources")}
    prompt = replace(layout, chunks=(chunk,), **wide)
    assert found(prompt) == 64
    assert found(replace(prompt, chunks=(chunk, chunk, chunk))) is None
    assert found(replace(prompt, token_ids=np.zeros(65, np.int64))) is None


def test_a_long_prompt_alone_is_launched_by_the_cpu_only_where_a_layer_takes_the_device_longer() -> None:
    narrow = DecoderConfig("qwen2", 896, 4864, 24, 14, 2, 64, 151674, 32768)
    wide = DecoderConfig("internlm2", 6144, 16384, 48, 48, 8, 128, 92553, 32768)
    assert choose_max_lonely_tokens(wide) == 1024
    assert choose_max_lonely_tokens(narrow) > 2048, "whatever a step may hold"


def make_cores(**options: object) -> tuple[EngineCore, EngineCore]:
    """The same model on a GPU, launched one by one and step after step, and captured and a step ahead."""
    given = {"device": "cuda", "dtype": "float32", "max_batch_size": 12, "session_len": 256, **options}
    plain, captured = make_core(**given, use_cuda_graphs=False), make_core(**given)
    plain.looks_ahead = False
    assert captured.looks_ahead
    assert captured.runner.graphs is not None
    return plain, captured


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_busy_token_num": 70},
        {"max_batch_size": 1},
        {"max_batch_size": 5},
        {"num_blocks": 24},
        {"num_blocks": 4096},
    ],
)
def test_captured_steps_give_the_answers_of_uncaptured_ones(options: dict[str, int]) -> None:
    plain, captured = make_cores(**options)
    recorded = RecordedGraphs(captured)
    expected = answer(plain, make_requests(9))
    assert answer(captured, make_requests(9)) == expected
    assert 0 in recorded.num_chunks, "a step of decodes was replayed"
    assert any(recorded.num_chunks), "a step with prompts was replayed"
    assert bool(captured.scheduler.counters["preemptions"]) == (options.get("num_blocks") == 24)


@pytest.mark.gpu
def test_most_answers_of_captured_steps_are_the_same_in_bf16() -> None:
    plain, captured = make_cores(dtype="bfloat16")
    expected, answers = (answer(core, make_requests(9)) for core in (plain, captured))
    # A padded batch may take another kernel, whose last bits can turn a close choice.
    assert sum(answers[name] == ids for name, ids in expected.items()) >= 7


@pytest.mark.gpu
def test_a_step_of_too_many_chunks_runs_uncaptured_between_captured_ones() -> None:
    plain, captured = make_cores(max_batch_size=32)
    recorded = RecordedGraphs(captured)
    requests = [make_request(f"r{n}", [[n + 1, 7, 3]], LONG) for n in range(20)]
    assert answer(captured, requests) == answer(plain, requests)
    assert set(recorded.num_chunks) == {0}, "20 prompts at once are in no graph, their decodes are"


@pytest.mark.gpu
def test_sampled_and_penalised_answers_of_captured_steps_are_those_of_uncaptured_ones() -> None:
    changes = ({"do_sample": True, "random_seed": 1}, {"repetition_penalty": 1.3}, {"min_new_tokens": 5}, {})
    requests = [
        make_request(f"r{n}", [[n + 1, 7], make_picture(n), [3] * n], replace(LONG, **changes[n % 4]), (9,))
        for n in range(8)
    ]
    plain, captured = make_cores()
    assert answer(captured, requests) == answer(plain, requests)
