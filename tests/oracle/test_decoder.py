"""The decoder, through the whole engine, against transformers' Llama under InternLM2's names: fp32, on the CPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.oracle.driving import answer, record_logits
from tests.oracle.twins import VOCAB_SIZE, build_engine, create_twin, relative_error
from tilewise.types import FinishReason, GenerationConfig, Request

NUM_NEW = 32
TOLERANCE = 1e-4
ROPES = {
    "absent": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


def make_prompt(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def make_request(name: str, prompt: tuple[int, ...]) -> Request:
    return Request(name, prompt, generation=GenerationConfig(max_new_tokens=NUM_NEW))


@torch.no_grad()
def continue_greedily(twin, prompt: tuple[int, ...]) -> tuple[list[int], Tensor]:
    """Recompute everything at every step: no cache that could be wrong. Returns ids and their logits."""
    ids = torch.tensor([prompt])
    rows: list[Tensor] = []
    for _ in range(NUM_NEW):
        rows.append(twin(input_ids=ids).logits[0, -1])
        ids = torch.cat((ids, rows[-1].argmax().view(1, 1)), dim=1)
    return ids[0, len(prompt) :].tolist(), torch.stack(rows)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
    "options", [{}, {"max_prefill_token_num": 13, "cache_block_seq_len": 16}], ids=["whole", "chunked"]
)
def test_thirty_two_greedy_tokens_and_their_logits_equal_llamas(rope: str, options: dict, tmp_path: Path) -> None:
    twin = create_twin(rope_scaling=ROPES[rope])
    prompt = make_prompt(90, seed=1)
    expected_ids, expected_logits = continue_greedily(twin, prompt)
    core = build_engine(twin, tmp_path, **options)
    logits = record_logits(core)
    answers = answer(core, make_request("a", prompt))
    assert answers["a"].token_ids == expected_ids
    assert answers["a"].finish_reason is FinishReason.LENGTH
    assert len(set(expected_ids)) > NUM_NEW // 2
    assert relative_error(torch.cat(logits), expected_logits) < TOLERANCE


def test_biases_of_the_attention_are_llamas(tmp_path: Path) -> None:
    twin = create_twin(has_decoder_bias=True)
    prompt = make_prompt(20, seed=2)
    expected_ids, expected_logits = continue_greedily(twin, prompt)
    core = build_engine(twin, tmp_path)
    logits = record_logits(core)
    assert answer(core, make_request("a", prompt))["a"].token_ids == expected_ids
    assert relative_error(torch.cat(logits), expected_logits) < TOLERANCE


def test_linear_scaling_changes_the_answer() -> None:
    prompt = make_prompt(90, seed=1)
    absent, _ = continue_greedily(create_twin(), prompt)
    linear, _ = continue_greedily(create_twin(rope_scaling=ROPES["linear"]), prompt)
    assert absent != linear


def test_answers_in_company_equal_llamas_alone(tmp_path: Path) -> None:
    twin = create_twin()
    prompts = {f"r{length}": make_prompt(length, seed=length) for length in (1, 15, 64, 65, 130)}
    core = build_engine(twin, tmp_path, max_prefill_token_num=40)
    answers = answer(core, *(make_request(name, prompt) for name, prompt in prompts.items()))
    for name, prompt in prompts.items():
        assert answers[name].token_ids == continue_greedily(twin, prompt)[0]
