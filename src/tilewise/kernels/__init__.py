"""The public operations. Each tries its fast candidates, which decline with a reason, then its plain twin."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from tilewise.kernels import attention, reference
from tilewise.kernels.batch import AttentionBatch, PrefillChunk
from tilewise.kernels.reference import apply_rope, pixel_shuffle, rms_norm, silu_and_multiply, write_kv
from tilewise.kernels.resample import cut_tiles, normalize_tiles, resize_bicubic

__all__ = [
    "AttentionBatch",
    "PrefillChunk",
    "apply_rope",
    "attend",
    "attend_tiles",
    "cut_tiles",
    "normalize_tiles",
    "pixel_shuffle",
    "resize_bicubic",
    "rms_norm",
    "silu_and_multiply",
    "write_kv",
]

# cuDNN before 9.15.1 was wrong for lengths that 128 does not divide, such as a tile's 1025.
_CUDNN_RIGHT_FROM = 91501
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
if (torch.backends.cudnn.version() or 0) >= _CUDNN_RIGHT_FROM:
    _BACKENDS.insert(0, SDPBackend.CUDNN_ATTENTION)


def attend_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention inside each tile; see `reference.attend_tiles`."""
    if q.device.type != "cuda":
        return reference.attend_tiles(q, k, v)
    with sdpa_kernel(_BACKENDS, set_priority=True):
        return reference.attend_tiles(q, k, v)


def _attend_decodes(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    if attention.decline_decodes(q, k_cache) is None:
        return attention.attend_decodes(q, k_cache, v_cache, batch.block_table, batch.lengths)
    rows = zip(q.split(1), batch.block_table.split(1), batch.lengths.split(1), strict=True)
    if q.device.type == "cuda":  # one at a time: the twin copies contexts, and the plan has no room for all of them
        return torch.cat([reference.attend_decodes(row, k_cache, v_cache, table, n) for row, table, n in rows])
    return reference.attend_decodes(q, k_cache, v_cache, batch.block_table, batch.lengths)


def _attend_fresh(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a chunk that starts its sequence: no context to gather, no mask to build."""
    if q.dtype == torch.float32:  # only the quadratic backend takes grouped queries in fp32
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel(_BACKENDS, set_priority=True) if q.device.type == "cuda" else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> Tensor:
    """Store the fresh keys and values, then let every token of the step see its own context.

    Shapes: q: (T, Hq, D) · k, v: (T, Hkv, D) · k_cache, v_cache: (num_blocks, block_size, Hkv, D) -> (T, Hq, D)
    """
    write_kv(k, v, k_cache, v_cache, batch.slots)
    outputs: list[Tensor] = []
    if batch.num_decodes:
        outputs.append(_attend_decodes(q[: batch.num_decodes], k_cache, v_cache, batch))
    for chunk in batch.chunks:
        tokens = slice(chunk.offset, chunk.offset + chunk.num_tokens)
        if chunk.start == 0:
            outputs.append(_attend_fresh(q[tokens], k[tokens], v[tokens]))
        else:
            context = reference.gather_context(k_cache, v_cache, chunk)
            outputs.append(_attend_continued(q[tokens], *context, chunk))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_continued(q: Tensor, k: Tensor, v: Tensor, chunk: PrefillChunk) -> Tensor:
    """Attention of a chunk that continues its sequence; see `reference.attend_prefill`."""
    if q.device.type != "cuda":
        return reference.attend_prefill(q, k, v, chunk)
    # The flash backend aligns a lower-right causal mask without building it; it wants equal head counts here.
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mask = causal_lower_right(q.shape[2], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)
