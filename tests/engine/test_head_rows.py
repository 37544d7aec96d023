"""A head with more rows than the tokenizer has tokens, as Qwen's: their ids never come out of the engine."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.tiny import BLOCK_SIZE, MODEL, TILE_BYTES, VOCAB_SIZE, make_request, run
from tests.processes import PATIENCE_S
from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore, build_core
from tilewise.engine.launch import find_checkpoint, launch_engine
from tilewise.types import GenerationConfig, StepOutput

NUM_TOKENS = 100


def make_core(num_tokens: int | None) -> EngineCore:
    """A model that would take an id beyond the tokenizer at nearly every step."""
    decoder = replace(MODEL.decoder, num_tokens=num_tokens)
    options = EngineConfig(
        device="cpu",
        load_format="dummy",
        cache_block_seq_len=BLOCK_SIZE,
        kv_cache_bytes=1 << 20,
        image_cache_bytes=TILE_BYTES,
    )
    torch.set_num_threads(1)
    core, _ = build_core(Path(), replace(MODEL, decoder=decoder), options)
    torch.manual_seed(0)
    with torch.no_grad():
        core.runner.model.decoder.head.weight[NUM_TOKENS:VOCAB_SIZE].normal_(std=100.0)
    return core


def ask(core: EngineCore, **generation: object) -> list[StepOutput]:
    wish = GenerationConfig(max_new_tokens=20, logprobs=5, **generation)  # type: ignore[arg-type]
    return run(core, [make_request("r", [[1, 2, 3]], wish)])["r"]


@pytest.mark.parametrize("generation", [{}, {"do_sample": True, "temperature": 2.0, "top_k": 0, "random_seed": 1}])
def test_neither_answers_nor_their_logprobs_hold_an_id_beyond_the_tokenizer(generation: dict[str, object]) -> None:
    def find_ids(num_tokens: int | None) -> set[int]:
        entries = [entry for output in ask(make_core(num_tokens), **generation) for entry in output.logprobs]
        assert len(entries) == 20
        return {token_id for entry in entries for token_id in (entry.token_id, *(top for top, _ in entry.top))}

    assert max(find_ids(NUM_TOKENS)) < NUM_TOKENS <= max(find_ids(None))


def test_logprobs_are_shares_of_the_tokenizers_ids_alone() -> None:
    wish = GenerationConfig(max_new_tokens=1, logprobs=5, logit_bias=((7, 100.0),))
    (output,) = run(make_core(NUM_TOKENS), [make_request("r", [[1, 2, 3]], wish)])["r"]
    assert output.token_ids == (7,)
    assert output.logprobs[0].logprob == pytest.approx(0.0, abs=1e-6)


def test_ids_beyond_the_tokenizer_are_refused_by_name() -> None:
    core = make_core(NUM_TOKENS)
    for field in ({"bad_token_ids": (NUM_TOKENS,)}, {"logit_bias": ((NUM_TOKENS, 1.0),)}):
        (output,) = run(core, [make_request("r", [[1]], GenerationConfig(**field))])["r"]  # type: ignore[arg-type]
        assert next(iter(field)) in (output.error or "")


@pytest.mark.parametrize("in_process", [True, False])
def test_an_engine_is_launched_with_the_tokenizers_size(in_process: bool) -> None:
    config = EngineConfig(device="cpu", kv_cache_bytes=64 << 20, session_len=512)
    engine = launch_engine(find_checkpoint(None, config), config, in_process=in_process, num_tokens=40)
    outputs: list[StepOutput] = []
    ended = threading.Event()

    def listen(output: StepOutput) -> None:
        outputs.append(output)
        if output.finish_reason is not None:
            ended.set()

    try:
        wish = GenerationConfig(max_new_tokens=10, ignore_eos=True)
        engine.client.submit(make_request("r", [[1, 2, 3]], wish), listen)
        assert ended.wait(PATIENCE_S)
    finally:
        engine.client.close()
    ids = [token_id for output in outputs for token_id in output.token_ids]
    assert len(ids) == 10
    assert max(ids) < 40
