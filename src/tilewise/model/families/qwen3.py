"""Qwen3: Qwen2 without biases, whose queries and keys are normalised a head at a time."""

from tilewise.model.families.family import Family
from tilewise.model.families.qwen2 import QWEN2

QWEN3 = Family(
    ends=QWEN2.ends,
    layers=QWEN2.layers,
    layer={
        **QWEN2.layer,
        "self_attn.q_norm": ("attention.q_norm", None),
        "self_attn.k_norm": ("attention.k_norm", None),
    },
)
