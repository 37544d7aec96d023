"""Qwen2 and Qwen2.5: Llama's computation with biases on queries, keys and values alone."""

from tilewise.model.families.family import Family

QWEN2 = Family(
    ends={"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"},
    layers="model.layers",
    layer={
        "self_attn.q_proj": ("attention.qkv", "q"),
        "self_attn.k_proj": ("attention.qkv", "k"),
        "self_attn.v_proj": ("attention.qkv", "v"),
        "self_attn.o_proj": ("attention.output", None),
        "mlp.gate_proj": ("mlp.gate_up", "gate"),
        "mlp.up_proj": ("mlp.gate_up", "up"),
        "mlp.down_proj": ("mlp.down", None),
        "input_layernorm": ("attention_norm", None),
        "post_attention_layernorm": ("mlp_norm", None),
    },
)
