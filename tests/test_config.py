import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tiny import MODEL
from tests.messages import mentions
from tilewise.config import DeviceConfig, EngineConfig, ModelConfig, RopeScaling, resolve
from tilewise.config.resolve import CPU_KV_CACHE_BYTES
from tilewise.errors import ConfigError

CPU, CUDA = DeviceConfig("cpu"), DeviceConfig("cuda", 1, (9, 0))
LIMIT = MODEL.decoder.max_position_embeddings
REFUSED: dict[str, list[Any]] = {
    "tp": [0, 2, "1", None],
    "session_len": [0, -1, 1.5, "1", True],
    "max_batch_size": [0, -1, 1.5, None, True],
    "cache_max_entry_count": [0, 1, 1.0, -0.1, 1000, math.nan, "0.8", None, True],
    "cache_block_seq_len": [0, 1, 65, 64.0, "64", None, []],
    "quant_policy": [4, 8, "8", None],
    "rope_scaling_factor": [-1.0, 0.5, math.nan, math.inf, "2", None],
    "max_prefill_token_num": [0, -1, 1.5, "1", True],
    "model_format": ["awq", "", 3],
    "dtype": ["fp8", "", None, []],
    "enable_prefix_caching": ["no", 0, None],
    "download_dir": [3, b"folder"],
    "revision": [3],
    "device": [3, None],
    "load_format": ["pt", None],
    "kv_cache_bytes": [0, -1, 1.5, "1"],
    "image_cache_bytes": [-1, 1.5, "1", True],
    "max_prefill_tiles": [0, -1, 1.5, "1"],
    "max_busy_token_num": [0, -1, 1.5, "1"],
    "use_cuda_graphs": ["no", 0, None],
}


def model_with(**changes: Any) -> ModelConfig:
    return replace(MODEL, decoder=replace(MODEL.decoder, **changes))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_refused_value_names_its_field(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as refusal:
        EngineConfig.from_options({name: value})
    assert refusal.value.param == name


def test_every_field_is_checked() -> None:
    assert {field.name for field in fields(EngineConfig)} == set(REFUSED)


@pytest.mark.parametrize(
    "options",
    [
        {"session_len": 8192, "max_batch_size": 1, "cache_max_entry_count": 0.5, "cache_block_seq_len": 16},
        {"tp": 1, "quant_policy": 0, "model_format": "hf", "dtype": "bfloat16", "revision": "main"},
        {"download_dir": Path("folder"), "rope_scaling_factor": 2, "image_cache_bytes": 0, "device": "cuda:1"},
    ],
)
def test_what_is_allowed_is_kept_as_it_was_given(options: dict[str, object]) -> None:
    config = EngineConfig.from_options(options)
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("cache_max_entry", "cache_max_entry_count"),
        ("session_length", "session_len"),
        ("max_batchsize", "max_batch_size"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(given: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"{given}.*{near}") as refusal:
        EngineConfig.from_options({given: 1})
    assert refusal.value.param == given


def test_an_unknown_option_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(ConfigError, match=r"zzz.*Known: cache_block_seq_len.*tp"):
        EngineConfig.from_options({"zzz": 1})


def test_the_cpu_computes_in_fp32_with_a_fixed_cache_one_tile_at_a_time() -> None:
    resolved = resolve(EngineConfig(), MODEL, CPU)
    assert (resolved.dtype, resolved.kv_cache_bytes) == ("float32", CPU_KV_CACHE_BYTES)
    assert (resolved.max_step_tiles, resolved.max_step_tokens) == (1, 1024)
    assert resolved.session_len == LIMIT


def test_a_gpu_computes_in_the_checkpoints_dtype_and_shares_out_what_is_free() -> None:
    resolved = resolve(EngineConfig(), replace(MODEL, dtype="bfloat16"), CUDA)
    assert (resolved.dtype, resolved.kv_cache_bytes, resolved.cache_share) == ("bfloat16", None, 0.8)
    assert resolved.max_step_tiles > 1
    assert resolved.device.name == "cuda:1"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_was_asked_for_is_never_replaced(device: DeviceConfig) -> None:
    config = EngineConfig(
        dtype="float16",
        session_len=100,
        max_batch_size=7,
        cache_block_seq_len=16,
        max_prefill_token_num=77,
        max_prefill_tiles=3,
        enable_prefix_caching=False,
        cache_max_entry_count=0.3,
        kv_cache_bytes=12345,
        image_cache_bytes=0,
    )
    resolved = resolve(config, MODEL, device)
    assert (resolved.dtype, resolved.session_len, resolved.max_batch_size) == ("float16", 100, 7)
    assert (resolved.block_size, resolved.max_step_tokens, resolved.max_step_tiles) == (16, 77, 3)
    assert (resolved.use_prefix_cache, resolved.cache_share) == (False, 0.3)
    assert (resolved.kv_cache_bytes, resolved.image_cache_bytes) == (12345, 0)


def test_a_step_holds_a_token_of_every_running_sequence() -> None:
    assert resolve(EngineConfig(max_batch_size=9000), MODEL, CPU).max_step_tokens == 9000
    with pytest.raises(ConfigError, match=mentions("max_prefill_token_num=10", "max_batch_size=11")):
        resolve(EngineConfig(max_batch_size=11, max_prefill_token_num=10), MODEL, CPU)


def test_dummy_weights_make_a_model_that_says_it_is_random() -> None:
    assert not resolve(EngineConfig(), MODEL, CPU).model.is_random
    assert resolve(EngineConfig(load_format="dummy"), MODEL, CPU).model.is_random


def test_bytes_of_a_token_count_keys_and_values_of_every_layer() -> None:
    assert resolve(EngineConfig(), MODEL, CPU).kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert resolve(EngineConfig(dtype="bfloat16"), MODEL, CPU).kv_bytes_per_token == 2 * 2 * 2 * 16 * 2


@pytest.mark.parametrize("scaling", [None, RopeScaling("dynamic", 3.0)])
def test_up_to_the_models_limit_the_rotary_base_is_the_models(scaling: RopeScaling | None) -> None:
    for session_len in (None, 1, LIMIT):
        resolved = resolve(EngineConfig(session_len=session_len), model_with(rope_scaling=scaling), CPU)
        assert (resolved.rope_base, resolved.rope_position_scale) == (MODEL.decoder.rope_theta, 1.0)


@pytest.mark.parametrize("scaling", [None, RopeScaling("dynamic", 3.0)])
def test_beyond_the_limit_the_base_grows_once_by_the_factor_asked_for(scaling: RopeScaling | None) -> None:
    config = EngineConfig(session_len=4 * LIMIT, rope_scaling_factor=2.0)
    resolved = resolve(config, model_with(rope_scaling=scaling), CPU)
    assert resolved.rope_base == pytest.approx(MODEL.decoder.rope_theta * (2.0 * 4 - 1.0) ** (16 / 14))
    assert resolved.rope_position_scale == 1.0
    assert resolved.session_len == 4 * LIMIT


def test_beyond_the_limit_without_a_factor_is_refused_with_both_numbers_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match=rf"{LIMIT + 1}.*{LIMIT}.*rope_scaling_factor") as refusal:
        resolve(EngineConfig(session_len=LIMIT + 1), MODEL, CPU)
    assert refusal.value.param == "session_len"


def test_linear_scaling_divides_positions_and_takes_no_further_factor() -> None:
    model = model_with(rope_scaling=RopeScaling("linear", 4.0))
    resolved = resolve(EngineConfig(), model, CPU)
    assert (resolved.rope_base, resolved.rope_position_scale) == (MODEL.decoder.rope_theta, 0.25)
    with pytest.raises(ConfigError, match="divides") as refusal:
        resolve(EngineConfig(session_len=2 * LIMIT, rope_scaling_factor=2.0), model, CPU)
    assert refusal.value.param == "rope_scaling_factor"


def test_a_factor_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="changes nothing") as refusal:
        resolve(EngineConfig(session_len=LIMIT, rope_scaling_factor=2.0), MODEL, CPU)
    assert refusal.value.param == "rope_scaling_factor"


def test_graphs_are_captured_on_a_gpu_alone_and_up_to_the_largest_batch() -> None:
    gpu = DeviceConfig("cuda", 0, (9, 0))
    assert resolve(EngineConfig(), MODEL, DeviceConfig("cpu")).graphs is None
    assert resolve(EngineConfig(use_cuda_graphs=False), MODEL, gpu).graphs is None
    for largest in (1, 5, 16, 100, 128):
        graphs = resolve(EngineConfig(max_batch_size=largest, max_busy_token_num=700), MODEL, gpu).graphs
        assert graphs is not None
        assert graphs.decodes[-1] == largest
        assert graphs.mixed[-1] >= 700 + largest, "whatever a busy step holds"
        for sizes in (graphs.decodes, graphs.mixed, graphs.tiles):
            assert sorted(set(sizes)) == list(sizes)
