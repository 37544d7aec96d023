"""InternLM2 and InternLM2.5: Llama's computation under other names, with a packed `wqkv`."""

from tilewise.model.families.family import Family

INTERNLM2 = Family(
    ends={"model.tok_embeddings": "embedding", "model.norm": "norm", "output": "head"},
    layers="model.layers",
    layer={
        "attention.wqkv": ("attention.qkv", "grouped"),
        "attention.wo": ("attention.output", None),
        "feed_forward.w1": ("mlp.gate_up", "gate"),
        "feed_forward.w3": ("mlp.gate_up", "up"),
        "feed_forward.w2": ("mlp.down", None),
        "attention_norm": ("attention_norm", None),
        "ffn_norm": ("mlp_norm", None),
    },
)
