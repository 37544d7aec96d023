"""Qwen2 and Qwen3 in every layout, through the whole engine, against transformers': fp32, on the CPU."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from tests.oracle.driving import answer, record_logits
from tests.oracle.test_decoder import NUM_NEW, TOLERANCE, continue_greedily, make_prompt, make_request
from tests.oracle.twins import build_engine, create_twin, load_engine, relative_error, write_checkpoint
from tilewise.config import LayoutName

LAYOUTS: tuple[LayoutName, ...] = ("official", "hf_flat", "hf_nested")
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
TEXTS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, dynamic NTK below its limit": {"model_type": "qwen2", "rope_parameters": DYNAMIC},
    "qwen2, positions divided": {"model_type": "qwen2", "rope_parameters": LINEAR},
    "qwen2, 7 queries a key": {"model_type": "qwen2", "hidden_size": 112, "num_attention_heads": 14},
    "qwen2, 5 queries a key": {"model_type": "qwen2", "hidden_size": 80, "num_attention_heads": 10},
    "qwen2, a window beyond the context": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 256},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3, tied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3, biases": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "qwen3, heads wider than the model": {"model_type": "qwen3", "head_dim": 48},
    "qwen3, 5 queries a key": {"model_type": "qwen3", "head_dim": 16, "num_attention_heads": 10},
    "qwen3, dynamic NTK below its limit": {"model_type": "qwen3", "head_dim": 32, "rope_parameters": DYNAMIC},
}
PROMPT = make_prompt(90, seed=1)


@cache
def create_case(name: str) -> tuple[InternVLForConditionalGeneration, list[int], Tensor]:
    """A twin, its greedy answer to PROMPT, and the logits of each step."""
    twin = create_twin(text=TEXTS[name])
    ids, logits = continue_greedily(twin, PROMPT)
    assert len(set(ids)) > NUM_NEW // 2
    return twin, ids, logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TEXTS)
def test_thirty_two_greedy_tokens_and_their_logits_equal_transformers(
    name: str, layout: LayoutName, tmp_path: Path
) -> None:
    twin, expected_ids, expected_logits = create_case(name)
    core = build_engine(twin, tmp_path, layout=layout)
    logits = record_logits(core)
    assert answer(core, make_request("a", PROMPT))["a"].token_ids == expected_ids
    assert relative_error(torch.cat(logits), expected_logits) < TOLERANCE
    assert core.runner.model.config.layout == layout


@pytest.mark.parametrize("name", TEXTS)
def test_chunks_and_blocks_from_the_cache_change_nothing(name: str, tmp_path: Path) -> None:
    twin, expected_ids, expected_logits = create_case(name)
    core = build_engine(twin, tmp_path, max_prefill_token_num=13, cache_block_seq_len=16)
    logits = record_logits(core)
    first, again = (answer(core, make_request("a", PROMPT))["a"] for _ in range(2))
    assert first.token_ids == again.token_ids == expected_ids
    assert again.cached_tokens >= 80
    assert relative_error(torch.cat(logits), expected_logits.repeat(2, 1)) < TOLERANCE


def test_every_variant_answers_differently() -> None:
    alike = {"qwen2, dynamic NTK below its limit", "qwen2, a window beyond the context"}
    answers = {name: tuple(create_case(name)[1]) for name in TEXTS}
    assert {answers[name] for name in alike} == {answers["qwen2"]}
    assert len(set(answers.values())) == len(TEXTS) - len(alike)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_in_the_file_is_used_whatever_config_says(layout: LayoutName, tmp_path: Path) -> None:
    twin, expected_ids, _ = create_case("qwen2")
    write_checkpoint(twin, tmp_path, layout)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert "true" in (tmp_path / "config.json").read_text()
    assert answer(load_engine(tmp_path), make_request("a", PROMPT))["a"].token_ids == expected_ids
