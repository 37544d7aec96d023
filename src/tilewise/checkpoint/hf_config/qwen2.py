"""Qwen2Config: the language model of Qwen2 and Qwen2.5, and what Qwen3Config has in common with it."""

from dataclasses import replace

from tilewise.checkpoint.hf_config.rope import read_rope
from tilewise.checkpoint.hf_config.section import MAX_LAYERS, MAX_VOCAB, Section, are_names
from tilewise.config import DecoderConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _read_window(section: Section, num_layers: int, num_positions: int) -> int | None:
    """Return the sliding window, or None where no layer has one; one that hides a trained position is refused.

    QUIRK: null is no window; only an absent key means 4096.
    """
    first = section.count("max_window_layers", 28, low=0)
    kinds = [_SLIDING if number >= first else _FULL for number in range(num_layers)]
    kinds = section.read("layer_types", kinds, "a list of names", are_names)
    if len(kinds) != num_layers:
        raise section.error("layer_types", f"a list of num_hidden_layers={num_layers} names")
    if not {_FULL, _SLIDING}.issuperset(kinds):
        raise section.unsupported("layer_types", _FULL)
    is_used = section.flag("use_sliding_window", False) and _SLIDING in kinds
    if not is_used or section.is_null("sliding_window"):
        return None
    window = section.count("sliding_window", 4096, high=MAX_VOCAB)
    if window < num_positions:
        remedy = f"a window of at least max_position_embeddings={num_positions}, or use_sliding_window=false"
        raise section.unsupported("sliding_window", remedy)
    return window


def read_qwen(section: Section, family: str, head_dim: int, *, has_qk_norm: bool) -> DecoderConfig:
    """Read what both classes spell alike, with their common defaults; biases are the caller's."""
    section.choice("hidden_act", "silu", ("silu",))
    num_heads = section.count("num_attention_heads", 32)
    # QUIRK: null is as many as there are heads; only an absent key means 32.
    num_kv_heads = section.count("num_key_value_heads", num_heads if section.is_null("num_key_value_heads") else 32)
    if num_heads % num_kv_heads:
        raise section.error("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
    if head_dim % 2:
        raise section.error("head_dim", f"even (rotary halves), which {head_dim} is not")
    num_layers = section.count("num_hidden_layers", 32, high=MAX_LAYERS)
    num_positions = section.count("max_position_embeddings", 32768, high=MAX_VOCAB)
    window = _read_window(section, num_layers, num_positions)
    rope_theta, rope_scaling = read_rope(section)
    return DecoderConfig(
        family=family,
        hidden_size=section.count("hidden_size", 4096),
        intermediate_size=section.count("intermediate_size", 22016),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=section.count("vocab_size", 151936, high=MAX_VOCAB),
        max_position_embeddings=num_positions,
        norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        use_qk_norm=has_qk_norm,
        sliding_window=window,
    )


def read_decoder(section: Section) -> DecoderConfig:
    """Defaults are Qwen2Config's. QUIRK: the class has biases on queries, keys and values whatever flags say."""
    share = section.count("hidden_size", 4096) // section.count("num_attention_heads", 32)
    decoder = read_qwen(section, "qwen2", section.count("head_dim", share), has_qk_norm=False)
    return replace(decoder, use_qkv_bias=True)
