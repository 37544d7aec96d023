"""Qwen2Config and Qwen3Config as the official layout holds them, against the classes of transformers."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen3Config

from tests.checkpoint.configs import OFFICIAL, write_config
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DecoderConfig, DeviceConfig, EngineConfig, RopeScaling, resolve
from tilewise.errors import CheckpointError, ConfigError, UnsupportedModelError

CLASSES = {"Qwen2ForCausalLM": Qwen2Config, "Qwen3ForCausalLM": Qwen3Config}


def read(folder: Path, changes: dict[str, Any] | None = None) -> DecoderConfig:
    """The decoder of OFFICIAL with changes in `llm_config`."""
    inside = {f"llm_config.{key}": value for key, value in (changes or {}).items()}
    return load_model_config(write_config(folder, OFFICIAL, inside)).decoder


@pytest.mark.parametrize("name", CLASSES)
def test_absent_keys_take_the_defaults_of_transformers(name: str, tmp_path: Path) -> None:
    empty = {"llm_config": {"architectures": [name]}}
    decoder, theirs = load_model_config(write_config(tmp_path, OFFICIAL, empty)).decoder, CLASSES[name]()
    assert (decoder.hidden_size, decoder.intermediate_size) == (theirs.hidden_size, theirs.intermediate_size)
    assert (decoder.num_layers, decoder.num_heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert (decoder.num_kv_heads, decoder.vocab_size) == (theirs.num_key_value_heads, theirs.vocab_size)
    assert decoder.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert (decoder.norm_eps, decoder.max_position_embeddings) == (theirs.rms_norm_eps, theirs.max_position_embeddings)
    assert (decoder.rope_theta, decoder.rope_scaling) == (theirs.rope_parameters["rope_theta"], None)
    assert not decoder.is_head_tied


def test_qwen2_has_biases_on_queries_keys_and_values_alone_and_qwen3_norms_and_one_flag(tmp_path: Path) -> None:
    def flags(decoder: DecoderConfig) -> tuple[bool, bool, bool]:
        return decoder.use_qkv_bias, decoder.use_output_bias, decoder.use_qk_norm

    assert flags(read(tmp_path)) == (True, False, False)
    assert flags(read(tmp_path, {"architectures": ["Qwen3ForCausalLM"]})) == (False, False, True)
    biased = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}
    assert flags(read(tmp_path, biased)) == (True, True, True)


def test_an_explicit_head_size_is_no_share_of_the_width(tmp_path: Path) -> None:
    assert read(tmp_path).head_dim == 16
    assert read(tmp_path, {"head_dim": 48}).head_dim == 48
    assert read(tmp_path, {"architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_theta": 1e6}, 1e6, None),
        ({"rope_theta": 1e6, "rope_scaling": None}, 1e6, None),
        ({"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}}, 1e6, None),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}},
            1e6,
            RopeScaling("dynamic", 2.0),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, 5e6, None),
        ({"rope_parameters": {"rope_theta": 5e6}}, 5e6, None),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 5e6}}, 5e6, RopeScaling("linear", 4.0)),
        (
            {"rope_theta": 3.0, "rope_parameters": {"rope_type": "dynamic", "factor": 2}},
            3.0,
            RopeScaling("dynamic", 2.0),
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2},
                "rope_parameters": {"rope_type": "dynamic", "factor": 3},
            },
            1e4,
            RopeScaling("linear", 2.0),
        ),
        (
            {
                "rope_scaling": {},
                "rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2},
            },
            1e6,
            RopeScaling("dynamic", 2.0),
        ),
        ({"rope_theta": 1e6, "rope_scaling": {}, "rope_parameters": {}}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 1.0}}, 1e6, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", CLASSES)
def test_rope_is_read_in_both_spellings_as_transformers_reads_it(
    changes: dict[str, Any], theta: float, scaling: RopeScaling | None, architecture: str, tmp_path: Path
) -> None:
    decoder = read(tmp_path, {**changes, "architectures": [architecture]})
    assert (decoder.rope_theta, decoder.rope_scaling) == (theta, scaling)
    theirs = CLASSES[architecture](max_position_embeddings=512, **changes).rope_parameters
    assert theirs["rope_theta"] == theta
    kind = "default" if scaling is None else scaling.type
    assert theirs["rope_type"] == kind


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 16},
        {"sliding_window": None, "use_sliding_window": False},
        {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 0},
        {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0, "max_position_embeddings": 8192},
        {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2},
        {"sliding_window": 16, "use_sliding_window": True},
        {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention"] * 2},
        {"layer_types": ["full_attention"] * 2, "sliding_window": None},
    ],
    ids=str,
)
def test_a_window_that_hides_nothing_is_not_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    limits = {key: value for key, value in changes.items() if key == "max_position_embeddings"}
    assert read(tmp_path, changes) == read(tmp_path, limits)
    theirs = Qwen2Config(num_hidden_layers=2, **changes)
    assert theirs.sliding_window is None or "sliding_attention" not in theirs.layer_types


def test_a_window_of_all_trained_positions_bounds_the_session_whatever_the_rotary_base(tmp_path: Path) -> None:
    changes = {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 0}
    assert read(tmp_path, changes) == replace(read(tmp_path), sliding_window=512)
    model = load_model_config(tmp_path)
    model = replace(model, decoder=read(tmp_path, changes))
    assert resolve(EngineConfig(), model, DeviceConfig("cpu")).session_len == 512
    with pytest.raises(ConfigError, match=r"session_len=513 .*window of 512 ") as refusal:
        resolve(EngineConfig(session_len=513, rope_scaling_factor=2.0), model, DeviceConfig("cpu"))
    assert refusal.value.param == "session_len"


def test_an_absent_window_is_4096_and_null_none(tmp_path: Path) -> None:
    windowed = {"use_sliding_window": True, "max_window_layers": 0}
    assert read(tmp_path, windowed).sliding_window == Qwen2Config(**windowed).sliding_window == 4096
    assert read(tmp_path, {**windowed, "sliding_window": None}).sliding_window is None
    with pytest.raises(UnsupportedModelError, match="max_position_embeddings=8192"):
        read(tmp_path, {**windowed, "max_position_embeddings": 8192})


@pytest.mark.parametrize("name", CLASSES)
def test_null_key_value_heads_are_as_many_as_heads_and_absent_ones_32(name: str, tmp_path: Path) -> None:
    null = {"architectures": [name], "num_attention_heads": 64, "hidden_size": 256, "num_key_value_heads": None}
    absent = {**null, "num_key_value_heads": ...}
    theirs = CLASSES[name](num_attention_heads=64, num_key_value_heads=None)
    assert read(tmp_path, null).num_kv_heads == theirs.num_key_value_heads == 64
    assert read(tmp_path, absent).num_kv_heads == CLASSES[name](num_attention_heads=64).num_key_value_heads == 32


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sliding_window": 511, "use_sliding_window": True, "max_window_layers": 0}, "sliding_window=511"),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, "sliding_window=16"),
        (
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "sliding_window=16",
        ),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "llama3"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_typ": "dynamic"}}, "rope_parameters"),
        ({"rope_scaling": {"foo": 1}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
    ids=str,
)
def test_what_would_compute_something_else_is_refused_by_name(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        read(tmp_path, changes)
    assert field in str(refusal.value)
    assert "llm_config." in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"head_dim": 15}, "head_dim"),
        ({"head_dim": 0}, "head_dim"),
        ({"hidden_size": 2}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"use_sliding_window": 1}, "use_sliding_window"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": "yes"}, "attention_bias"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ],
    ids=str,
)
def test_a_malformed_field_is_an_error_that_names_it(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(tmp_path, changes)
    assert field in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("head", ["language_model.lm_head.weight", None])
@pytest.mark.parametrize("is_asked", [False, True])
def test_a_head_is_tied_only_where_config_asks_for_it_and_the_file_has_none(
    head: str | None, is_asked: bool, tmp_path: Path
) -> None:
    names = ["language_model.model.embed_tokens.weight", *([head] if head else [])]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    assert read(tmp_path, {"tie_word_embeddings": is_asked}).is_head_tied == (is_asked and head is None)


def test_without_weights_to_look_at_a_head_is_its_own_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tilewise")
    assert not read(tmp_path, {"tie_word_embeddings": False}).is_head_tied
    assert not caplog.messages
    assert not read(tmp_path, {"tie_word_embeddings": True}).is_head_tied
    assert "a head of its own is counted" in caplog.text


def test_damaged_weights_are_told_by_name_where_a_head_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    assert not read(tmp_path).is_head_tied
    with pytest.raises(CheckpointError, match=r"^model\.safetensors is "):
        read(tmp_path, {"tie_word_embeddings": True})
