"""Paged decode attention in Triton: one query a sequence, keys and values split along the context.

Each program holds the query heads of one KV head (padded to 16 rows for the matrix units) and walks its
share of the context block by block with an online softmax; a second kernel merges the shares. The grid does
not depend on the lengths, so a captured graph stays valid.

Source: Dao et al. 2023, "Flash-Decoding for long-context inference"; online softmax after Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

_MAX_SPLITS = 16
_MIN_ROWS = 16  # smallest M of a Triton dot


def decline_decodes(q: Tensor, k_cache: Tensor) -> str | None:
    """Say why the Triton kernel cannot serve these tensors, or None if it can."""
    if q.device.type != "cuda":
        return "not a CUDA device"
    return decline_shapes(q, k_cache)


def decline_shapes(q: Tensor, k_cache: Tensor) -> str | None:
    """Say why the kernel cannot serve these shapes on any device, or None if it can."""
    head_dim = q.shape[-1]
    if head_dim & (head_dim - 1) or head_dim < 16:
        return f"head size {head_dim} is no power of two from 16 up"
    if q.dtype != k_cache.dtype:
        return f"queries are {q.dtype} and keys {k_cache.dtype}"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    return None


@cache
def _kernels() -> tuple[Any, Any]:
    import triton
    import triton.language as tl

    @triton.jit
    def attend_split(
        q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, partial_ptr, stats_ptr, scale,
        q_stride, table_stride, kv_block_stride, kv_token_stride, kv_head_stride,
        NUM_SPLITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
        BLOCK: tl.constexpr, DIM: tl.constexpr,
    ):  # fmt: skip
        sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        num_heads = tl.num_programs(1)
        row, column, token = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, BLOCK)
        length = tl.load(lengths_ptr + sequence)
        num_blocks = tl.cdiv(length, BLOCK)
        share = tl.cdiv(num_blocks, NUM_SPLITS)
        first = split * share
        last = tl.minimum(first + share, num_blocks)
        q_offset = sequence.to(tl.int64) * q_stride + (head * GROUP + row)[:, None] * DIM + column[None]
        q = tl.load(q_ptr + q_offset, mask=row[:, None] < GROUP, other=0.0)  # (ROWS, DIM)
        running_max = tl.full([ROWS], float("-inf"), tl.float32)
        running_sum = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DIM], tl.float32)
        for number in range(first, last):
            block = tl.load(table_ptr + sequence * table_stride + number).to(tl.int64)
            kv_offset = block * kv_block_stride + token[:, None] * kv_token_stride + head * kv_head_stride
            visible = number * BLOCK + token < length
            k = tl.load(k_ptr + kv_offset + column[None], mask=visible[:, None], other=0.0)  # (BLOCK, DIM)
            v = tl.load(v_ptr + kv_offset + column[None], mask=visible[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (ROWS, BLOCK)
            scores = tl.where(visible[None], scores, float("-inf"))
            new_max = tl.maximum(running_max, tl.max(scores, 1))
            weights = tl.exp(scores - new_max[:, None])
            shrink = tl.exp(running_max - new_max)
            running_sum = running_sum * shrink + tl.sum(weights, 1)
            out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            running_max = new_max
        share_index = ((sequence * num_heads + head) * NUM_SPLITS + split).to(tl.int64)
        tl.store(partial_ptr + (share_index * ROWS + row)[:, None] * DIM + column[None], out)
        tl.store(stats_ptr + share_index * 2 * ROWS + row, running_max)
        tl.store(stats_ptr + share_index * 2 * ROWS + ROWS + row, running_sum)

    @triton.jit
    def merge_splits(
        partial_ptr, stats_ptr, out_ptr,
        NUM_SPLITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    ):  # fmt: skip
        sequence, head = tl.program_id(0), tl.program_id(1)
        num_heads = tl.num_programs(1)
        row, column = tl.arange(0, ROWS), tl.arange(0, DIM)
        first = (sequence * num_heads + head).to(tl.int64) * NUM_SPLITS
        total_max = tl.full([ROWS], float("-inf"), tl.float32)
        for split in range(NUM_SPLITS):
            total_max = tl.maximum(total_max, tl.load(stats_ptr + (first + split) * 2 * ROWS + row))
        total_sum = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DIM], tl.float32)
        for split in range(NUM_SPLITS):
            stats = stats_ptr + (first + split) * 2 * ROWS
            shrink = tl.exp(tl.load(stats + row) - total_max)
            total_sum += tl.load(stats + ROWS + row) * shrink
            partial = tl.load(partial_ptr + ((first + split) * ROWS + row)[:, None] * DIM + column[None])
            out += partial * shrink[:, None]
        out = out / total_sum[:, None]
        offset = ((sequence * num_heads + head) * GROUP + row)[:, None] * DIM + column[None]
        tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=row[:, None] < GROUP)

    return attend_split, merge_splits


def attend_decodes(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: Tensor) -> Tensor:
    """One query a sequence against its cached context; see `reference.attend_decodes` for the shapes.

    Numerics: scores, softmax and sums in fp32, weights rounded to the cache's dtype before the second product;
    within 2e-3 of the twin in fp16 and 1e-2 in bf16, relative to the largest output.
    """
    num_sequences, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    rows = max(_MIN_ROWS, 1 << (group - 1).bit_length())
    q = q.contiguous()
    # A small batch needs more shares to fill the device; every share is one more partial result to merge.
    num_splits = max(1, min(_MAX_SPLITS, 512 // max(1, num_sequences * num_kv_heads)))
    shares = (num_sequences, num_kv_heads, num_splits)
    partial = torch.empty((*shares, rows, head_dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((*shares, 2, rows), dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    attend_split, merge_splits = _kernels()
    attend_split[shares](
        q, k_cache, v_cache, block_table, lengths, partial, stats, head_dim**-0.5,
        q.stride(0), block_table.stride(0), *k_cache.stride()[:3],
        NUM_SPLITS=num_splits, GROUP=group, ROWS=rows, BLOCK=block_size, DIM=head_dim,
        num_stages=1 if q.dtype == torch.float32 else 2,
    )  # fmt: skip
    merge_splits[shares[:2]](partial, stats, out, NUM_SPLITS=num_splits, GROUP=group, ROWS=rows, DIM=head_dim)
    return out
