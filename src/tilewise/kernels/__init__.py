"""The operations that models are computed with, on whatever device their tensors are.

Here: plain twins, the Triton kernels that take their place, and `dispatch`, which chooses; others import this alone.
Not here: parameters, layers, step plans.
"""

from tilewise.kernels.batch import AttentionBatch, PrefillChunk, count_items, list_items
from tilewise.kernels.dispatch import (
    add_layer_norm,
    add_rms_norm,
    attend_cached,
    attend_tiles,
    cut_tiles,
    decline_capture,
    gelu,
    linear,
    linear_gated,
    normalize_tiles,
    resize_bicubic,
    rms_norm,
    rms_norm_queries_and_keys_,
    rope_and_write_kv,
    silu_and_multiply,
)
from tilewise.kernels.head_norms import HeadNorms
from tilewise.kernels.reference import apply_rope, pixel_shuffle, write_kv
from tilewise.kernels.transfer import download, fill, upload

__all__ = [
    "AttentionBatch",
    "HeadNorms",
    "PrefillChunk",
    "add_layer_norm",
    "add_rms_norm",
    "apply_rope",
    "attend_cached",
    "attend_tiles",
    "count_items",
    "cut_tiles",
    "decline_capture",
    "download",
    "fill",
    "gelu",
    "linear",
    "linear_gated",
    "list_items",
    "normalize_tiles",
    "pixel_shuffle",
    "resize_bicubic",
    "rms_norm",
    "rms_norm_queries_and_keys_",
    "rope_and_write_kv",
    "silu_and_multiply",
    "upload",
    "write_kv",
]
