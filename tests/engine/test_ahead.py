"""A step launched before the one ahead of it is collected changes no answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.test_forms import ask
from tests.engine.test_forms import make_core as make_wide_core
from tests.engine.tiny import GREEDY, make_core, make_picture, make_request, run
from tilewise import demo
from tilewise.engine.core import EngineCore
from tilewise.engine.messages import Abort, Submit
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.types import FinishReason, GenerationConfig, Request, StepOutput

SAMPLED = GenerationConfig(max_new_tokens=24, do_sample=True, temperature=1.2, top_k=0, random_seed=3)
GENERATIONS = (
    GREEDY,
    replace(GREEDY, max_new_tokens=40),
    replace(GREEDY, max_new_tokens=1),
    SAMPLED,
    replace(SAMPLED, logprobs=3),
    replace(SAMPLED, repetition_penalty=1.4),
    replace(SAMPLED, frequency_penalty=0.7, min_new_tokens=5),
    replace(SAMPLED, bad_token_ids=(7, 8), min_new_tokens=9),
)


def make_requests() -> list[Request]:
    """Every way to choose a token, with and without a picture, and stop ids that do come."""
    requests: list[Request] = []
    for number, generation in enumerate(GENERATIONS * 3):
        parts = [[number + 1, 5], make_picture(number % 4, 1 + number % 2), [9]] if number % 3 else [[number + 1, 5]]
        requests.append(make_request(f"r{number}", parts, generation, stop_token_ids=(11, 29, 60)))
    return requests


def describe(outputs: list[StepOutput]) -> tuple[object, ...]:
    ids = [token_id for output in outputs for token_id in output.token_ids]
    # Company changes a product's last bits.
    logprobs = [(own.token_id, round(own.logprob, 4)) for output in outputs for own in output.logprobs]
    return ids, logprobs, outputs[-1].finish_reason


def answers(core: EngineCore, requests: list[Request], *, looks_ahead: bool) -> dict[str, tuple[object, ...]]:
    core.looks_ahead = looks_ahead
    return {request_id: describe(outputs) for request_id, outputs in run(core, requests).items()}


@pytest.mark.parametrize("num_blocks", [256, 14])
def test_a_step_ahead_answers_as_one_at_a_time(num_blocks: int) -> None:
    options = {"num_blocks": num_blocks, "session_len": 150, "max_batch_size": 12}
    expected = answers(make_core(**options), make_requests(), looks_ahead=False)
    core = make_core(**options)
    assert answers(core, make_requests(), looks_ahead=True) == expected
    assert (core.stats()["preemptions"] > 0) == (num_blocks < 256)
    assert {reason for _, _, reason in expected.values()} == {FinishReason.STOP, FinishReason.LENGTH}


def test_a_step_ahead_keeps_answers_to_their_form() -> None:
    tokenizer = load_tokenizer(demo.model_folder())
    form = {"type": "regex", "regex": "[0-9]{3}-[a-z]{4}"}
    requests = [ask(tokenizer, f"r{number}", form if number % 2 else None, max_new_tokens=12) for number in range(6)]
    both = [answers(make_wide_core(Path(demo.model_folder())), requests, looks_ahead=ahead) for ahead in (False, True)]
    assert both[0] == both[1]


def test_an_abort_while_a_step_is_on_its_way_leaves_nothing_behind() -> None:
    core = make_core()
    core.looks_ahead = True
    for name in ("a", "b"):
        core.receive(Submit((make_request(name, [[1, 2]], replace(GREEDY, max_new_tokens=50)),)))
    for _ in range(3):
        core.step()
    core.receive(Abort("a"))
    core.receive(Abort("b"))
    assert core.has_work, "the step on its way is still to be collected"
    assert core.step() == []
    assert not core.has_work
    core.scheduler.check_integrity()
    assert core.scheduler.kv.pool.num_held == 0


def test_a_request_that_comes_while_an_awaited_step_runs_is_in_the_next_one() -> None:
    core = make_core()
    core.looks_ahead = True
    streamed = [replace(make_request(f"r{n}", [[1, n] * 8], GREEDY), namespace="key") for n in range(3)]
    core.receive(Submit((streamed[0],)))
    core.step()
    core.receive(Submit((streamed[1],)))
    core.step()  # launches the second prompt beside the first answer
    launched = core.stats()["tokens_computed"]
    core.step()
    assert core.stats()["tokens_computed"] == launched, "its results are taken before anything is launched"
    core.receive(Submit((streamed[2],)))
    core.step()
    assert core.stats()["tokens_computed"] == launched + 2 + 16
