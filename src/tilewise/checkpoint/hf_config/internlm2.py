"""InternLM2Config: the language model of InternVL 1.5 and of parts of 2 and 2.5."""

from typing import Literal, cast

from tilewise.checkpoint.hf_config.section import MAX_LAYERS, MAX_VOCAB, Section
from tilewise.config import DecoderConfig, RopeScaling


def _read_rope_scaling(section: Section) -> RopeScaling | None:
    if section.get("rope_scaling", None) is None:
        return None
    scaling = section.section("rope_scaling")
    key = "type" if scaling.get("type", None) is not None else "rope_type"
    if scaling.word(key, None) is None:
        raise section.error("rope_scaling", "an object with type and factor")
    kind = cast(Literal["linear", "dynamic"], scaling.choice(key, "", ("linear", "dynamic")))
    factor = scaling.number("factor")
    if factor < 1.0:
        raise scaling.error("factor", "at least 1")
    return RopeScaling(kind, factor)


def read_decoder(section: Section) -> DecoderConfig:
    """Defaults are InternLM2Config's of the published checkpoint; only the sizes have no usable default there."""
    section.choice("hidden_act", "silu", ("silu",))
    hidden_size = section.count("hidden_size")
    num_heads = section.count("num_attention_heads")
    num_kv_heads = section.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise section.error("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
    if hidden_size % (2 * num_heads):
        raise section.error("hidden_size", f"an even multiple of num_attention_heads={num_heads} (rotary halves)")
    if section.flag("tie_word_embeddings", False):
        raise section.error("tie_word_embeddings", "false")
    has_biases = section.flag("bias", True)
    return DecoderConfig(
        family="internlm2",
        hidden_size=hidden_size,
        intermediate_size=section.count("intermediate_size"),
        num_layers=section.count("num_hidden_layers", high=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=section.count("vocab_size", high=MAX_VOCAB),
        max_position_embeddings=section.count("max_position_embeddings", high=MAX_VOCAB),
        norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=section.number("rope_theta", 10000.0),
        rope_scaling=_read_rope_scaling(section),
        use_qkv_bias=has_biases,
        use_output_bias=has_biases,
    )
