"""Plain-torch twins of every operation: the oracle of each kernel, and what runs on the CPU.

Written to be read beside the paper, in as few operations as say it. Shapes: T tokens, B sequences,
Hq/Hkv heads, D head dim, C width, N tiles, P positions of a tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.kernels.batch import PrefillChunk
from tilewise.kernels.head_norms import HeadNorms


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis.

    Numerics: fp32 inside, rounded to x's dtype, then multiplied by the weight, as the reference model does.
    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def rms_norm_queries_and_keys_(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> None:
    """Normalise queries and keys, each over its whole width, where they lie in a packed projection (..., 3C)."""
    width = qkv.shape[-1] // 3
    for start, weight in ((0, q_weight), (width, k_weight)):
        part = qkv[..., start : start + width]
        part.copy_(rms_norm(part, weight, eps))


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add a branch, times its layer scale (C,) if it has one, and normalise the sum: -> (normed, sum).

    Numerics: product and sum are each rounded to the dtype, and the norm is that of the rounded sum.
    """
    total = residual + (x if scale is None else x * scale)
    return rms_norm(total, weight, eps), total


def add_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add a branch as `add_rms_norm` does, and take the layer norm of the sum: -> (normed, sum).

    Numerics: the sum is rounded as there; the norm is fp32 inside and rounded once.
    Source: Ba et al. 2016, "Layer Normalization", eq. 4.
    """
    total = residual + (x if scale is None else x * scale)
    return F.layer_norm(total, weight.shape, weight, bias, eps), total


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """SwiGLU's elementwise part: silu(left half) * right half, (T, 2I) -> (T, I).

    Source: Shazeer 2020, "GLU Variants Improve Transformer", section 2.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Exact GELU of x + bias, the sum and the rest in fp32, rounded once.

    Source: Hendrycks and Gimpel 2016, "Gaussian error linear units", eq. 1, with the error function.
    """
    return F.gelu(x if bias is None else x.float() + bias.float()).to(x.dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the half-split pairs of each head.

    Shapes: x: (T, H, D) · cos, sin: (T, D/2) fp32 -> (T, H, D)
    Numerics: fp32 inside, one rounding at the end.
    Source: Su et al. 2021, "RoFormer", section 3.4.2, in the half-split (NeoX) layout.
    """
    left, right = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store fresh keys and values at their slots; slot -1 stores nothing.

    Shapes: k, v: (T, Hkv, D) · k_cache, v_cache: (num_blocks, block_size, Hkv, D) · slots: (T,) int64
    """
    kept = slots >= 0
    slots = slots[kept]
    places = slots // k_cache.shape[1], slots % k_cache.shape[1]
    k_cache[places] = k[kept]
    v_cache[places] = v[kept]


def rope_and_write_kv(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    num_heads: int,
    norms: HeadNorms | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate the queries and keys of a packed projection, each head normalised first if it has norms, and store.

    Shapes: qkv: (T, (Hq + 2 Hkv) * D), all queries first, then keys, then values; angles: cosines and sines; the rest
    as in `apply_rope` and `write_kv` -> q (T, Hq, D) and k, v (T, Hkv, D)
    Numerics: a normalised head is rounded as in `rms_norm`, and again behind the rotation.
    """
    num_kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, head_dim))
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if norms is not None:
        q, k = rms_norm(q, norms.q_weight, norms.eps), rms_norm(k, norms.k_weight, norms.eps)
    q, k = apply_rope(q, *angles), apply_rope(k, *angles)
    write_kv(k, v, k_cache, v_cache, slots)
    return q, k, v


def attend_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention inside each tile: q, k, v (N, P, H, D) -> (N, P, H, D)."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def attend_decodes(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: Tensor) -> Tensor:
    """One query a sequence against its cached context.

    Shapes:
        q: (B, Hq, D) · k_cache, v_cache: (num_blocks, block_size, Hkv, D)
        block_table: (B, max_blocks) int32, -1 padded · lengths: (B,) int32, this token included -> (B, Hq, D)
    """
    num_blocks = block_table.shape[1]
    block_size = k_cache.shape[1]
    blocks = block_table.clamp(min=0).long()
    k = k_cache[blocks].flatten(1, 2)  # (B, S, Hkv, D)
    v = v_cache[blocks].flatten(1, 2)
    visible = torch.arange(num_blocks * block_size, device=q.device)[None] < lengths[:, None]
    # A freed block may hold anything, NaN too, and neither 0 * NaN nor NaN - inf is clean: zeroed, not only masked.
    hidden = ~visible[:, :, None, None]
    k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
    out = F.scaled_dot_product_attention(
        q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=visible[:, None, None], enable_gqa=True
    )  # (B, Hq, 1, D)
    return out.squeeze(2)


def attend_prefill(q: Tensor, k: Tensor, v: Tensor, chunk: PrefillChunk) -> Tensor:
    """One chunk's queries against its whole context, causal and aligned at the bottom right.

    Shapes: q: (chunk.num_tokens, Hq, D) · k, v: (chunk.end, Hkv, D) -> (chunk.num_tokens, Hq, D)
    """
    query_positions = torch.arange(chunk.start, chunk.end, device=q.device)
    visible = torch.arange(chunk.end, device=q.device)[None] <= query_positions[:, None]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], attn_mask=visible, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def gather_context(k_cache: Tensor, v_cache: Tensor, blocks: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Copy the first `end` positions out of a sequence's blocks (max_blocks,): two (end, Hkv, D)."""
    blocks = blocks[: -(-end // k_cache.shape[1])].long()
    return k_cache[blocks].flatten(0, 1)[:end], v_cache[blocks].flatten(0, 1)[:end]


def pixel_shuffle(x: Tensor, ratio: float, version: str) -> Tensor:
    """Fold neighbouring positions into channels: (N, w, h, c) -> (N, w * ratio, h * ratio, c / ratio^2).

    Source: the official InternVL modelling code; v1 leaves the two position axes swapped, v2 swaps them back.
    """
    n, w, h, c = x.shape
    x = x.reshape(n, w, round(h * ratio), round(c / ratio)).transpose(1, 2)
    x = x.reshape(n, round(h * ratio), round(w * ratio), round(c / ratio**2))
    return x.transpose(1, 2) if version == "v2" else x
