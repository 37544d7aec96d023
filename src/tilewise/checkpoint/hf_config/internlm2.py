"""InternLM2Config: the language model of InternVL 1.5 and of parts of 2 and 2.5."""

from tilewise.checkpoint.hf_config.rope import read_rope
from tilewise.checkpoint.hf_config.section import MAX_LAYERS, MAX_VOCAB, Section
from tilewise.config import DecoderConfig


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
    rope_theta, rope_scaling = read_rope(section)
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
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        use_qkv_bias=has_biases,
        use_output_bias=has_biases,
    )
