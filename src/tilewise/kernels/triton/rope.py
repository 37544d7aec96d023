"""Norms of heads, rope, and the write to the paged cache in one Triton kernel, straight from the packed projection.

a token's row of qkv   | query heads ……………… | key heads …… | value heads … |
a program takes        | HEADS | HEADS | …… | HEADS | …… | HEADS | …… |

HEADS divides both counts, so that no program holds heads of two kinds. The grid depends on shapes only and nothing is
read back, so a captured graph stays valid; rows that only pad its batch carry slot -1 and write to no slot.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilewise.kernels.head_norms import HeadNorms
from tilewise.kernels.triton.launch import await_inputs, depend

_MAX_HEADS = 8  # of one program: at head size 128 it reads 2 KiB in half precision


def decline_layout(cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> str | None:
    """Say why the kernel cannot address these tensors, or None if it can."""
    if k_cache.stride() != v_cache.stride() or k_cache.stride(-1) != 1:
        return f"keys lie as {k_cache.stride()} and values as {v_cache.stride()}"
    if k_cache.shape[-1] % 2:
        return f"head size {k_cache.shape[-1]} has no two halves"
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        return f"angles are {cos.dtype} and {sin.dtype}, not torch.float32"
    if not (cos.is_contiguous() and sin.is_contiguous()):
        return "angles are not contiguous"
    if slots.dtype != torch.int64 or not slots.is_contiguous():
        return "slots are no contiguous torch.int64"
    return None


def decline_norms(norms: HeadNorms | None, head_dim: int) -> str | None:
    """Say why the kernel cannot normalise heads of this size, or None if it can, or need not."""
    if norms is None or norms.q_weight.shape == norms.k_weight.shape == (head_dim,):
        return None
    return f"norms are {tuple(norms.q_weight.shape)} and {tuple(norms.k_weight.shape)}, not ({head_dim},)"


@cache
def kernel() -> Any:
    """Return the kernel, compiled for each new kind of arguments at its first launch."""
    import triton
    import triton.language as tl

    wait = await_inputs()

    @triton.jit
    def rotate_and_write(
        qkv_ptr, cos_ptr, sin_ptr, slots_ptr, q_weight_ptr, k_weight_ptr, q_ptr, k_ptr, k_cache_ptr, v_cache_ptr,
        qkv_stride, block_stride, slot_stride, head_stride, eps,
        NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
        LANES: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEEPS_KEYS: tl.constexpr, HAS_NORMS: tl.constexpr,
        IS_DEPENDENT: tl.constexpr,
    ):  # fmt: skip
        token, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS
        head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, LANES)[None]
        valid = (column < HALF) & (head < HEADS)  # (HEADS, LANES)
        source = qkv_ptr + token * qkv_stride + (first + head) * (2 * HALF) + column
        if IS_DEPENDENT:
            wait()
        left = tl.load(source, mask=valid, other=0.0)
        right = tl.load(source + HALF, mask=valid, other=0.0)
        if first < NUM_HEADS + NUM_KV_HEADS:
            cos = tl.load(cos_ptr + token * HALF + column, mask=column < HALF, other=0.0)  # (1, LANES)
            sin = tl.load(sin_ptr + token * HALF + column, mask=column < HALF, other=0.0)
            wide_left, wide_right = left.to(tl.float32), right.to(tl.float32)
            if HAS_NORMS:  # rounded before the weight and behind it, as by the twin
                if first < NUM_HEADS:
                    left_weight = tl.load(q_weight_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)
                    right_weight = tl.load(q_weight_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
                else:
                    left_weight = tl.load(k_weight_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)
                    right_weight = tl.load(k_weight_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
                squares = wide_left * wide_left + wide_right * wide_right
                shrink = tl.rsqrt(tl.sum(squares, 1, keep_dims=True) / (2 * HALF) + eps)  # (HEADS, 1)
                left = ((wide_left * shrink).to(left.dtype).to(tl.float32) * left_weight).to(left.dtype)
                right = ((wide_right * shrink).to(left.dtype).to(tl.float32) * right_weight).to(left.dtype)
                wide_left, wide_right = left.to(tl.float32), right.to(tl.float32)
            left = (wide_left * cos - wide_right * sin).to(left.dtype)
            right = (wide_right * cos + wide_left * sin).to(right.dtype)
        if first < NUM_HEADS:
            q_place = q_ptr + (token * NUM_HEADS + first + head) * (2 * HALF) + column
            tl.store(q_place, left, mask=valid)
            tl.store(q_place + HALF, right, mask=valid)
        else:
            slot = tl.load(slots_ptr + token)
            place = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * slot_stride + column
            if first < NUM_HEADS + NUM_KV_HEADS:
                key_head = first - NUM_HEADS + head
                if slot >= 0:
                    tl.store(k_cache_ptr + place + key_head * head_stride, left, mask=valid)
                    tl.store(k_cache_ptr + place + key_head * head_stride + HALF, right, mask=valid)
                if KEEPS_KEYS:
                    k_place = k_ptr + (token * NUM_KV_HEADS + key_head) * (2 * HALF) + column
                    tl.store(k_place, left, mask=valid)
                    tl.store(k_place + HALF, right, mask=valid)
            elif slot >= 0:
                value_head = first - NUM_HEADS - NUM_KV_HEADS + head
                tl.store(v_cache_ptr + place + value_head * head_stride, left, mask=valid)
                tl.store(v_cache_ptr + place + value_head * head_stride + HALF, right, mask=valid)

    return rotate_and_write


def rope_and_write_kv(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    num_heads: int,
    returns_fresh: bool,
    norms: HeadNorms | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """See `kernels.rope_and_write_kv`; the fresh values are a view of `qkv`, the fresh keys a tensor of their own.

    Numerics: fp32 inside, rounded as the twin: within 1e-6 of it in fp32, 1e-5 with norms, and elsewhere one rounding
    step of the half type in at most one value of a hundred. Values are copied.
    """
    block_size, num_kv_heads, head_dim = k_cache.shape[1:]
    common = math.gcd(num_heads, num_kv_heads)
    heads = min(_MAX_HEADS, common & -common)  # its largest power of two
    lanes = 1 << (head_dim // 2 - 1).bit_length()
    q = torch.empty((len(qkv), num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    k = torch.empty((len(qkv), num_kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device) if returns_fresh else q
    q_weight = k_weight = None
    eps = 0.0
    if norms is not None:
        q_weight, k_weight, eps = norms.q_weight, norms.k_weight, norms.eps
    kernel()[(len(qkv), (num_heads + 2 * num_kv_heads) // heads)](
        qkv, *angles, slots, q_weight, k_weight, q, k, k_cache, v_cache, qkv.stride(0), *k_cache.stride()[:3], eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEADS=heads, HALF=head_dim // 2,
        LANES=lanes, BLOCK_SIZE=block_size, KEEPS_KEYS=returns_fresh, HAS_NORMS=norms is not None,
        num_warps=max(1, heads * lanes // 256), **depend(qkv.device, len(qkv)),
    )  # fmt: skip
    if not returns_fresh:
        return q, None
    return q, (k, qkv[:, -num_kv_heads * head_dim :].unflatten(-1, (num_kv_heads, head_dim)))
