"""Paged prefill attention in Triton: pieces of prompts against their own cached contexts, many in one launch.

The work is a list of items, each a few neighbouring queries of one chunk. A program takes one head of one item and
walks the context block by block with an online softmax, up to the last position that its queries may see. The grid
depends on how many items there may be, never on what they are, so that a captured graph stays valid.

Source: Dao 2023, "FlashAttention-2", algorithm 1, over a block table (Kwon et al. 2023, "PagedAttention", section 4.1).
"""

import math
from functools import cache
from typing import Any

from torch import Tensor

from tilewise.kernels.batch import QUERIES
from tilewise.kernels.triton import decode_attention

_LARGE_BLOCK = 128  # from here on one stage of keys and values is all that consumer cards have room for


def decline_items(q: Tensor, k_cache: Tensor) -> str | None:
    """Say why the Triton kernel cannot serve these, or None if it can: it reads the caches that decodes read."""
    return decode_attention.decline_decodes(q, k_cache)


@cache
def kernel() -> Any:
    """Return the kernel, compiled for each new kind of arguments at its first launch."""
    import triton
    import triton.language as tl

    @triton.jit
    def attend_item(
        q_ptr, k_ptr, v_ptr, table_ptr, items_ptr, out_ptr, scale,
        q_stride, out_stride, table_stride, kv_block_stride, kv_token_stride, kv_head_stride,
        GROUP: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    ):  # fmt: skip
        head, item = tl.program_id(0), items_ptr + tl.program_id(1) * 4
        first, count, row, position = tl.load(item), tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
        query, column, token = tl.arange(0, QUERIES), tl.arange(0, DIM), tl.arange(0, BLOCK)
        is_query = query < count
        place = (first + query).to(tl.int64)[:, None]
        q = tl.load(q_ptr + place * q_stride + head * DIM + column[None], mask=is_query[:, None], other=0.0)
        end = position + count
        num_blocks = tl.where(count > 0, tl.cdiv(end, BLOCK), 0)  # an item of nothing pads the grid
        running_max = tl.full([QUERIES], float("-inf"), tl.float32)
        running_sum = tl.zeros([QUERIES], tl.float32)
        out = tl.zeros([QUERIES, DIM], tl.float32)
        blocks_ptr = table_ptr + row * table_stride
        head_offset = token[:, None] * kv_token_stride + (head // GROUP) * kv_head_stride
        block = tl.load(blocks_ptr)
        num_whole = tl.minimum(position // BLOCK, num_blocks)  # blocks that every query sees to their end
        for is_masked in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
            for number in range(num_whole if is_masked else 0, num_blocks if is_masked else num_whole):
                kv_offset = block.to(tl.int64) * kv_block_stride + head_offset
                # NOTE: read a turn ahead: Triton keeps one block in flight if its address is loaded in the same turn.
                block = tl.load(blocks_ptr + tl.minimum(number + 1, num_blocks - 1))
                key = number * BLOCK + token
                # A freed block may hold NaN, which no weight of 0 removes.
                is_key = (key < end)[:, None] if is_masked else None
                k = tl.load(k_ptr + kv_offset + column[None], mask=is_key, other=0.0 if is_masked else None)
                v = tl.load(v_ptr + kv_offset + column[None], mask=is_key, other=0.0 if is_masked else None)
                scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # (QUERIES, BLOCK)
                if is_masked:
                    scores = tl.where(key[None] <= (position + query)[:, None], scores, float("-inf"))
                new_max = tl.maximum(running_max, tl.max(scores, 1) * scale)  # finite: everyone sees the first key
                weights = tl.exp2(scores * scale - new_max[:, None])
                shrink = tl.exp2(running_max - new_max)
                running_sum = running_sum * shrink + tl.sum(weights, 1)
                out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
                running_max = new_max
        out = out / running_sum[:, None]
        tl.store(out_ptr + place * out_stride + head * DIM + column[None], out.to(q.dtype), mask=is_query[:, None])

    return attend_item


def attend_items(q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, items: Tensor, out: Tensor) -> None:
    """Let every item's queries see their own context, and write to their rows of `out` alone.

    Shapes: q, out: (T, Hq, D), the last two axes dense · k_cache, v_cache: (num_blocks, block_size, Hkv, D) ·
        table: (chunks, max_blocks) int32 · items: (I, 4) int32, see `list_items`; one of no queries does nothing
    Numerics: scores, softmax and sums in fp32, weights rounded to the cache's dtype before the second product; within
        1e-5 of the twin, `reference.attend_prefill`, in fp32, 3e-3 in fp16 and 2e-2 in bf16, relative to the largest
        output.
    """
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = k_cache.shape[1:3]
    scale = head_dim**-0.5 * math.log2(math.e)
    kernel()[(num_heads, len(items))](
        q, k_cache, v_cache, table, items, out, scale,
        q.stride(0), out.stride(0), table.stride(0), *k_cache.stride()[:3],
        GROUP=num_heads // num_kv_heads, QUERIES=QUERIES, BLOCK=block_size, DIM=head_dim,
        num_stages=1 if q.element_size() > 2 or block_size >= _LARGE_BLOCK else 2,
    )  # fmt: skip
