"""The rotary table and its scalings against transformers' Llama."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tilewise.config import DecoderConfig, DeviceConfig, EngineConfig, ModelConfig, RopeScaling, VisionConfig, resolve
from tilewise.errors import ConfigError
from tilewise.kernels import apply_rope
from tilewise.layers.rope import Rope

HEAD_DIM, THETA, LIMIT = 32, 1e6, 256


def model_config(scaling: RopeScaling | None) -> ModelConfig:
    decoder = DecoderConfig("internlm2", 64, 96, 2, 2, 2, HEAD_DIM, 300, LIMIT, rope_theta=THETA, rope_scaling=scaling)
    return ModelConfig("InternVLChatModel", VisionConfig(48, 2, 3, 80, image_size=56), decoder)


def our_table(scaling: RopeScaling | None, **options: Any) -> Rope:
    resolved = resolve(EngineConfig(**options), model_config(scaling), DeviceConfig("cpu"))
    return Rope(HEAD_DIM, resolved.session_len, resolved.rope_base, resolved.rope_position_scale)


def their_table(length: int, **scaling: Any) -> tuple[Tensor, Tensor]:
    """(length, head_dim) each, both halves alike."""
    parameters = {"rope_type": "default", "rope_theta": THETA, **scaling}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=LIMIT, rope_parameters=parameters
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


def assert_same_table(rope: Rope, theirs: tuple[Tensor, Tensor]) -> None:
    # Theirs computes angles in fp32, which at position 1,000 is off by up to 6e-5.
    for ours, expected in zip(rope(torch.arange(rope.length)), theirs, strict=True):
        torch.testing.assert_close(ours, expected[:, : HEAD_DIM // 2], rtol=0, atol=1e-4)


def test_unscaled_table_equals_llamas() -> None:
    assert_same_table(our_table(None), their_table(LIMIT))


def test_linear_table_equals_llamas() -> None:
    assert_same_table(our_table(RopeScaling("linear", 4.0)), their_table(LIMIT, rope_type="linear", factor=4.0))


def test_dynamic_table_below_its_limit_is_the_unscaled_one() -> None:
    rope = our_table(RopeScaling("dynamic", 2.0))
    assert_same_table(rope, their_table(LIMIT, rope_type="dynamic", factor=2.0))
    assert_same_table(rope, their_table(LIMIT))


@pytest.mark.parametrize("session_len", [LIMIT + 1, 1000])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_beyond_the_limit_the_base_is_llamas_for_a_sequence_of_the_whole_session(
    session_len: int, factor: float
) -> None:
    rope = our_table(RopeScaling("dynamic", 2.0), session_len=session_len, rope_scaling_factor=factor)
    assert_same_table(rope, their_table(session_len, rope_type="dynamic", factor=factor))


def test_beyond_the_limit_a_factor_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="rope_scaling_factor"):
        our_table(RopeScaling("dynamic", 2.0), session_len=LIMIT + 1)


def test_rotation_equals_llamas() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(40, heads, HEAD_DIM, generator=generator) for heads in (6, 2))
    cos, sin = their_table(40)
    theirs = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos[None], sin[None])
    angles = our_table(None)(torch.arange(40))
    for ours, expected in zip((apply_rope(q, *angles), apply_rope(k, *angles)), theirs, strict=True):
        torch.testing.assert_close(ours, expected[0].transpose(0, 1), rtol=0, atol=1e-4)


def test_bf16_keys_are_rotated_in_fp32_and_rounded_once() -> None:
    x = torch.randn(200, 2, HEAD_DIM, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = our_table(None)(torch.arange(200))
    rotated = apply_rope(x, cos, sin)
    assert torch.equal(rotated, apply_rope(x.float(), cos, sin).bfloat16())
    assert not torch.equal(rotated, apply_rope(x.float(), cos.bfloat16().float(), sin.bfloat16().float()).bfloat16())
