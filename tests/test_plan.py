"""The plan against the modules and pools that it plans."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.tiny import MODEL
from tests.messages import mentions
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DecoderConfig, DeviceConfig, EngineConfig, ModelConfig, VisionConfig, resolve
from tilewise.errors import ConfigError
from tilewise.model.internvl import InternVL
from tilewise.plan import Fit, count_tile_work, count_weights, fit_memory, plan_memory

CPU = DeviceConfig("cpu")


def count_tensors(model: ModelConfig) -> tuple[int, int, int]:
    """Elements of every tensor of an official checkpoint, by part."""
    with torch.device("meta"):
        slots = InternVL(resolve(EngineConfig(session_len=64), model, CPU)).slots()
    parts = ("vision_model.", "mlp1.", "language_model.")
    counts = [sum(math.prod(slot.shape) for name, slot in slots.items() if name.startswith(part)) for part in parts]
    assert sum(counts) == sum(math.prod(slot.shape) for slot in slots.values())
    return counts[0], counts[1], counts[2]


def vision_with(**changes: Any) -> ModelConfig:
    return replace(MODEL, vision=replace(MODEL.vision, **changes))


def decoder_with(**changes: Any) -> ModelConfig:
    return replace(MODEL, decoder=replace(MODEL.decoder, **changes))


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        vision_with(norm_type="layer_norm", use_qk_norm=False, use_qkv_bias=True),
        vision_with(use_qkv_bias=True),
        vision_with(use_qk_norm=False),
        vision_with(image_size=56, patch_size=14),
        replace(MODEL, select_layer=-2),
        replace(MODEL, select_layer=1),
        replace(MODEL, select_layer=0),
        decoder_with(use_qkv_bias=True, use_output_bias=True, vocab_size=300, head_dim=16),
        decoder_with(use_qkv_bias=True),
        decoder_with(family="qwen3", use_qk_norm=True),
        decoder_with(family="qwen2", use_qkv_bias=True, is_head_tied=True),
        decoder_with(num_layers=5, num_kv_heads=4, intermediate_size=7),
    ],
)
def test_weights_are_counted_exactly(model: ModelConfig) -> None:
    counts = count_weights(model)
    assert (counts.tower, counts.projector, counts.decoder) == count_tensors(model)
    assert counts.total == sum(count_tensors(model))


def test_the_weights_of_internvl_chat_v1_5_are_those_of_its_paper(shipped_data: Path) -> None:
    model = load_model_config(shipped_data / "internvl-chat-v1-5")
    counts = count_weights(model)
    assert (counts.tower, counts.projector, counts.decoder) == count_tensors(model)
    assert round(counts.tower / 1e9, 3) == 5.536
    assert round(counts.projector / 1e9, 3) == 0.116
    assert round(counts.decoder / 1e9, 2) == 19.86
    assert round(counts.total / 1e9, 2) == 25.51
    resolved = resolve(EngineConfig(), model, DeviceConfig("cuda", 0, (9, 0)))
    assert plan_memory(resolved).weights >> 20 == 48_664
    assert resolved.kv_bytes_per_token == 196_608


def test_parts_of_the_plan_add_up_to_the_weights_in_the_engines_dtype() -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        plan = plan_memory(resolve(EngineConfig(dtype=dtype), MODEL, CPU))
        assert plan.weights == count_weights(MODEL).total * size


def test_norms_of_heads_wider_than_the_model_are_planned_for() -> None:
    wide = decoder_with(family="qwen3", head_dim=64, use_qk_norm=True)
    without = replace(wide, decoder=replace(wide.decoder, use_qk_norm=False))
    config = resolve(EngineConfig(), wide, CPU)
    channels = (4 + 2) * 64 - wide.decoder.hidden_size
    grown = plan_memory(config).decoder_workspace - plan_memory(replace(config, model=without)).decoder_workspace
    assert grown == config.max_step_tokens * 3 * 4 * channels


def test_an_asked_for_cache_size_is_taken_and_a_share_is_of_what_is_left() -> None:
    fixed = resolve(EngineConfig(kv_cache_bytes=10_000_000), MODEL, CPU)
    plan = plan_memory(fixed)
    assert plan.count_blocks(fixed, free_bytes=0) == 10_000_000 // plan.kv_block
    shared = resolve(EngineConfig(cache_max_entry_count=0.5), MODEL, DeviceConfig("cuda", 0, (9, 0)))
    plan = plan_memory(shared)
    taken = plan.workspace + plan.graphs + plan.image_cache
    assert plan.count_blocks(shared, taken + 200 * plan.kv_block) == 100
    assert plan.count_blocks(shared, taken) == 0
    assert plan.count_blocks(shared, 0) == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"max_prefill_tiles": 32}, "tower_workspace"),
        ({"max_prefill_token_num": 8192}, "decoder_workspace"),
        ({"max_batch_size": 8192}, "decoder_workspace"),
        ({"session_len": 64}, "decoder_workspace"),
        ({"image_cache_bytes": 1 << 20}, "image_cache"),
        ({"cache_block_seq_len": 128}, "kv_block"),
    ],
)
def test_every_setting_moves_its_part_of_the_plan(options: dict[str, int], part: str) -> None:
    before = plan_memory(resolve(EngineConfig(), MODEL, CPU))
    after = plan_memory(resolve(EngineConfig(**options), MODEL, CPU))
    assert getattr(after, part) != getattr(before, part)


def test_a_tokenizer_with_fewer_tokens_than_the_head_has_rows_takes_less_room_for_logits_and_not_for_weights() -> None:
    cut = replace(MODEL, decoder=replace(MODEL.decoder, num_tokens=MODEL.decoder.vocab_size - 50))
    before, after = (plan_memory(resolve(EngineConfig(), model, CPU)) for model in (MODEL, cut))
    assert after.weights == before.weights
    assert after.decoder_workspace < before.decoder_workspace


GIB = 1 << 30
GPU = DeviceConfig("cuda")
# The shapes of InternVL-Chat-V1-5: MODEL holds the rest.
OFFICIAL = replace(
    MODEL,
    dtype="bfloat16",
    vision=VisionConfig(3200, 45, 25, 12800),
    decoder=DecoderConfig("internlm2", 6144, 16384, 48, 48, 8, 128, 92553, 32768),
)


def fit(gib: float, **options: int) -> Fit:
    return fit_memory(EngineConfig.from_options(options), OFFICIAL, GPU, int(gib * GIB))


def test_what_fits_is_left_as_it_was_asked_for() -> None:
    found = fit(80)
    assert found.changes == {}
    assert found.total_bytes <= 80 * GIB
    assert found.memory == plan_memory(found.config)


def test_advice_followed_is_a_plan_that_fits_without_advice() -> None:
    for gib in (50.2, 50.5, 51):
        advised = fit(gib)
        followed = fit(gib, **advised.changes)
        assert advised.changes
        assert (followed.changes, followed.num_blocks) == ({}, advised.num_blocks)
        assert followed.total_bytes <= gib * GIB
        assert followed.capacity >= min(followed.config.session_len, 4096)


def test_a_setting_of_the_callers_is_never_changed() -> None:
    assert fit(51, max_prefill_tiles=7).config.max_step_tiles == 7
    assert "session_len" not in fit(51, session_len=5000).changes


def test_what_cannot_fit_says_how_much_is_missing_and_fits_with_that_much_more() -> None:
    found = fit(24)
    assert (found.num_blocks, found.capacity) == (0, 0)
    assert found.missing_bytes > 0
    assert fit(24 + found.missing_bytes / GIB + 0.01).num_blocks > 0
    assert fit(24 + found.missing_bytes / GIB - 0.01).num_blocks == 0


def test_a_cache_too_small_for_one_session_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=mentions("kv_cache_bytes=1048576", 0)):
        fit(80, kv_cache_bytes=1 << 20)


def test_a_tile_of_the_26b_costs_as_much_arithmetic_as_321_prompt_tokens() -> None:
    # 45 layers of 4 * 3200^2 + 2 * 3200 * 12800 weights at 1,025 positions, their attention, and the projector.
    layer = 2 * 1025 * (4 * 3200**2 + 2 * 3200 * 12800) + 4 * 1025**2 * 3200
    projector = 2 * 256 * (12800 * 6144 + 6144**2)
    token = 2 * 48 * (6144 * (6144 + 2 * 1024) + 6144**2 + 3 * 6144 * 16384)
    assert count_tile_work(OFFICIAL) == pytest.approx((45 * layer + projector) / token, rel=0.01)


# Of FAMILY: the smallest and the largest decoder, with the towers that they have.
SMALL = replace(
    MODEL,
    dtype="bfloat16",
    vision=VisionConfig(1024, 24, 16, 4096, norm_type="layer_norm", use_qk_norm=False, use_qkv_bias=True),
    decoder=DecoderConfig("qwen2", 896, 4864, 24, 14, 2, 64, 151674, 32768, use_qkv_bias=True),
)
LARGE = replace(OFFICIAL, decoder=DecoderConfig("qwen2", 8192, 29568, 80, 64, 8, 128, 151674, 32768, use_qkv_bias=True))
HOPPER = DeviceConfig("cuda", 0, (9, 0))


def test_a_step_that_readers_wait_for_is_as_much_arithmetic_in_every_large_model_and_a_third_in_a_small_one() -> None:
    def count_busy_multiplications(model: ModelConfig) -> float:
        work = resolve(EngineConfig(), model, HOPPER).max_busy_work
        assert work is not None
        return work * model.decoder.num_layers * model.decoder.layer_matrix_size

    official = count_busy_multiplications(OFFICIAL)
    assert resolve(EngineConfig(), OFFICIAL, HOPPER).max_busy_work == 800
    assert count_busy_multiplications(LARGE) == pytest.approx(official, rel=0.01)
    assert count_busy_multiplications(SMALL) == pytest.approx(official / 3, rel=0.01)
    assert resolve(EngineConfig(max_busy_token_num=7), SMALL, HOPPER).max_busy_work == 7


def test_the_smallest_model_fills_a_busy_step_with_more_than_one_tile() -> None:
    work = resolve(EngineConfig(), SMALL, HOPPER).max_busy_work
    assert work is not None
    assert work > 8 * (count_tile_work(SMALL) + SMALL.tokens_per_tile)


def test_a_layers_matrices_are_what_a_layer_more_adds_without_vectors() -> None:
    for model in (SMALL, LARGE, OFFICIAL):
        decoder = model.decoder
        deeper = replace(model, decoder=replace(decoder, num_layers=decoder.num_layers + 1))
        vectors = 2 * decoder.hidden_size
        if decoder.use_qkv_bias:
            vectors += (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
        assert count_tensors(deeper)[2] - count_tensors(model)[2] == decoder.layer_matrix_size + vectors


def test_what_graphs_keep_grows_with_the_layers_that_they_launch() -> None:
    def count_kept_bytes(model: ModelConfig) -> float:
        fixed, graphs = plan_memory(resolve(EngineConfig(), model, HOPPER)), []
        for number in (2, 4):  # tiles, so many graphs more that need no more room
            config = resolve(EngineConfig(max_prefill_tiles=number), model, HOPPER)
            assert config.graphs is not None
            graphs.append((plan_memory(config).graphs, config.graphs.number))
        assert fixed.graphs >= graphs[0][0]
        return (graphs[1][0] - graphs[0][0]) / (graphs[1][1] - graphs[0][1])

    assert count_kept_bytes(OFFICIAL) == 8 << 20
    assert count_kept_bytes(SMALL) == 4 << 20
    assert count_kept_bytes(LARGE) == pytest.approx((80 / 48) * (8 << 20), abs=1)


def test_the_whole_family_fits_where_its_weights_leave_room() -> None:
    for model, gib in ((SMALL, 8), (OFFICIAL, 80), (LARGE, 192)):
        found = fit_memory(EngineConfig(), model, HOPPER, gib * GIB)
        assert found.changes == {}
        assert found.capacity >= 32768
        assert found.total_bytes <= gib * GIB
