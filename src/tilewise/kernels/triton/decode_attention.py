"""Paged decode attention in Triton: one query a sequence, keys and values split along the context.

Each program holds the query heads of one KV head (padded to 16 rows for the matrix units) and walks its
share of the context block by block with an online softmax. The program that arrives last for its sequence and
KV head merges the shares, in their order whoever it is, so that the same inputs give the same bits. The grid
does not depend on the lengths, so a captured graph stays valid; a sequence of length 0 writes nothing.

Source: Dao et al. 2023, "Flash-Decoding for long-context inference"; online softmax after Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilewise.kernels.optimisations import Optimisation, is_left_out
from tilewise.kernels.triton.arrivals import create_arrivals
from tilewise.kernels.triton.launch import await_inputs, depend, has_triton

_MAX_SPLITS = 16
_NUM_PROGRAMS = 512  # a few for every multiprocessor
# Where a few sequences of few KV heads would leave most multiprocessors without a program. More than _MAX_SPLITS shares
# are then of two blocks at least: a short context has as many as without them (computed, not measured).
_MANY_SPLITS = 64
_FEW_PROGRAMS = 128
_MIN_ROWS = 16  # smallest M of a Triton dot
_MAX_QUERIES = 64  # of one program
_LEAST_SHARED_BYTES = 99 << 10  # of a program on 8.6, 8.9 and 12.0
_MAX_PAIRS = 4096  # sequences times KV heads whose contexts may be shared
_IN_FLIGHT_BYTES = 64 << 10  # two blocks of 64 keys and values: what fits beside the rest on 8.6 and 8.9


def decline_decodes(q: Tensor, k_cache: Tensor) -> str | None:
    """Say why the Triton kernel cannot serve these tensors, or None if it can."""
    if is_left_out(Optimisation.PAGED_ATTENTION):
        return "paged attention is left out"
    if q.device.type != "cuda":
        return "not a CUDA device"
    return decline_shapes(q, k_cache)


def decline_shapes(q: Tensor, k_cache: Tensor) -> str | None:
    """Say why the kernel cannot serve these shapes on any device, or None if it can."""
    head_dim = q.shape[-1]
    if head_dim & (head_dim - 1) or head_dim < 16:
        return f"head size {head_dim} is no power of two from 16 up"
    # Keys, values and the queries of a prefill item.
    shared_bytes = (2 * k_cache.shape[1] + _MAX_QUERIES) * head_dim * k_cache.element_size()
    if shared_bytes > _LEAST_SHARED_BYTES:
        return f"blocks of {k_cache.shape[1]} with head size {head_dim} in {k_cache.dtype} take too much shared memory"
    if q.dtype != k_cache.dtype:
        return f"queries are {q.dtype} and keys {k_cache.dtype}"
    return None if has_triton() else "triton is not installed"


@cache
def kernel() -> Any:
    """Return the kernel, compiled for each new kind of arguments at its first launch."""
    import triton
    import triton.language as tl

    wait = await_inputs()

    @triton.jit
    def attend_split(
        q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, out_ptr, partial_ptr, stats_ptr, arrivals_ptr, scale,
        q_stride, out_stride, table_stride, kv_block_stride, kv_token_stride, kv_head_stride,
        NUM_SPLITS: tl.constexpr, MERGED_SPLITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
        MERGED_ROWS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, IS_DEPENDENT: tl.constexpr,
    ):  # fmt: skip
        sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        row, column, token = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, BLOCK)
        # NOTE: before the wait: the host writes lengths, and no kernel of a step.
        length = tl.load(lengths_ptr + sequence)
        num_blocks = tl.cdiv(length, BLOCK)
        share = tl.cdiv(num_blocks, NUM_SPLITS)
        if NUM_SPLITS > MERGED_SPLITS:
            share = tl.maximum(share, tl.minimum(2, tl.cdiv(num_blocks, MERGED_SPLITS)))
        first = split * share
        last = tl.minimum(first + share, num_blocks)
        is_head = row[:, None] < GROUP
        if IS_DEPENDENT:
            wait()
        q_offset = sequence.to(tl.int64) * q_stride + (head * GROUP + row)[:, None] * DIM + column[None]
        q = tl.load(q_ptr + q_offset, mask=is_head, other=0.0)  # (ROWS, DIM)
        if first >= last:  # nobody waits for a share without blocks
            return
        num_shares = tl.cdiv(num_blocks, share)
        running_max = tl.full([ROWS], float("-inf"), tl.float32)
        running_sum = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DIM], tl.float32)
        blocks_ptr = table_ptr + sequence * table_stride
        block = tl.load(blocks_ptr + first)
        for number in range(first, last):
            kv_offset = block.to(tl.int64) * kv_block_stride + token[:, None] * kv_token_stride + head * kv_head_stride
            # NOTE: read a turn ahead: Triton keeps only one block in flight if its address is loaded in the same turn.
            block = tl.load(blocks_ptr + tl.minimum(number + 1, last - 1))
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
        heads_ptr = out_ptr + sequence.to(tl.int64) * out_stride + head * GROUP * DIM
        if num_shares == 1:
            out = out / running_sum[:, None]
            tl.store(heads_ptr + row[:, None] * DIM + column[None], out.to(out_ptr.dtype.element_ty), mask=is_head)
            return
        if NUM_SPLITS > 1:
            pair = sequence * tl.num_programs(1) + head
            partials_ptr = partial_ptr + pair * NUM_SPLITS * GROUP * DIM
            maxima_ptr = stats_ptr + pair * 2 * NUM_SPLITS * GROUP
            sums_ptr = maxima_ptr + NUM_SPLITS * GROUP
            own_row = split * GROUP + row
            tl.store(partials_ptr + own_row[:, None] * DIM + column[None], out, mask=is_head)
            tl.store(maxima_ptr + own_row, running_max, mask=row < GROUP)
            tl.store(sums_ptr + own_row, running_sum, mask=row < GROUP)
            # NOTE: one thread counts for all: the others' stores come before it through this barrier alone.
            tl.debug_barrier()
            if tl.atomic_add(arrivals_ptr + pair, 1, sem="acq_rel", scope="gpu") == num_shares - 1:
                tl.store(arrivals_ptr + pair, 0)  # for the next launch
                merged_row = tl.arange(0, MERGED_ROWS)
                split_row = tl.arange(0, MERGED_SPLITS)[:, None]
                is_share = split_row < num_shares
                share_row = split_row * GROUP + tl.minimum(merged_row, GROUP - 1)[None]
                # Other multiprocessors wrote these: from L2, all in flight at once. (MERGED_SPLITS, MERGED_ROWS, DIM)
                partials = tl.load(
                    partials_ptr + share_row[:, :, None] * DIM + column[None, None],
                    mask=is_share[:, :, None], other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                maxima = tl.load(maxima_ptr + share_row, mask=is_share, other=float("-inf"), cache_modifier=".cg")
                sums = tl.load(sums_ptr + share_row, mask=is_share, other=0.0, cache_modifier=".cg")
                merged_max = tl.max(maxima, 0, keep_dims=True)
                shrinks = tl.exp(maxima - merged_max)  # (MERGED_SPLITS, MERGED_ROWS)
                merged_sum = tl.sum(sums * shrinks, 0, keep_dims=True)
                if NUM_SPLITS == MERGED_SPLITS:
                    shrinks = shrinks / merged_sum
                merged = tl.sum(partials * shrinks[:, :, None], 0)
                if NUM_SPLITS > MERGED_SPLITS:  # the shares that registers have no room for at once
                    for turn in range(MERGED_SPLITS, num_shares, MERGED_SPLITS):
                        share_row += MERGED_SPLITS * GROUP
                        is_share = turn + split_row < num_shares
                        partials = tl.load(
                            partials_ptr + share_row[:, :, None] * DIM + column[None, None],
                            mask=is_share[:, :, None], other=0.0, cache_modifier=".cg",
                        )  # fmt: skip
                        maxima = tl.load(
                            maxima_ptr + share_row, mask=is_share, other=float("-inf"), cache_modifier=".cg"
                        )
                        sums = tl.load(sums_ptr + share_row, mask=is_share, other=0.0, cache_modifier=".cg")
                        larger_max = tl.maximum(merged_max, tl.max(maxima, 0, keep_dims=True))
                        former = tl.exp(merged_max - larger_max)  # (1, MERGED_ROWS)
                        shrinks = tl.exp(maxima - larger_max)
                        merged_sum = merged_sum * former + tl.sum(sums * shrinks, 0, keep_dims=True)
                        merged = merged * tl.trans(former) + tl.sum(partials * shrinks[:, :, None], 0)
                        merged_max = larger_max
                    merged = merged / tl.trans(merged_sum)  # pyright: ignore[reportArgumentType]
                tl.store(
                    heads_ptr + merged_row[:, None] * DIM + column[None], merged.to(out_ptr.dtype.element_ty),
                    mask=merged_row[:, None] < GROUP,
                )  # fmt: skip

    return attend_split


def choose_num_splits(num_sequences: int, num_kv_heads: int, is_padded: bool = False) -> int:
    """Choose how many programs share a context: a power of two, so that few kernels are compiled.

    A small batch needs more shares to fill the device; every share is one more partial result to merge. Where most
    rows may only pad the batch it is taken for an eighth: a program without a context ends at once.
    """
    if num_sequences * num_kv_heads > _MAX_PAIRS:
        return 1
    num_sequences = -(-num_sequences // 8) if is_padded else num_sequences
    num_pairs = max(1, num_sequences * num_kv_heads)
    most = _MANY_SPLITS if num_pairs * _MAX_SPLITS < _FEW_PROGRAMS else _MAX_SPLITS
    wanted = _NUM_PROGRAMS // num_pairs
    return max(1, min(most, 1 << max(0, wanted.bit_length() - 1)))


def choose_num_stages(k_cache: Tensor) -> int:
    """Choose Triton's number of stages: one more than the blocks in flight."""
    block_bytes = 2 * k_cache.shape[1] * k_cache.shape[3] * k_cache.element_size()
    if k_cache.dtype == torch.float32:
        return 1
    return 3 if 2 * block_bytes <= _IN_FLIGHT_BYTES else 2


def get_arrivals(device: torch.device) -> Tensor:
    """Return the counters of this kernel's launches on a device, one for each sequence and KV head of a batch."""
    return create_arrivals(device, "attend_decodes", _MAX_PAIRS)


def attend_decodes(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    out: Tensor | None = None,
    is_padded: bool = False,
) -> Tensor:
    """One query a sequence against its cached context; see `reference.attend_decodes` for the shapes.

    With `out` (B, Hq, D), rows of any tensor whose heads are dense, the result is written there and returned. A row
    of length 0 is left as it was: whatever its memory held, unless `out` is given.

    Numerics: scores, softmax and sums in fp32, weights rounded to the cache's dtype before the second product;
    within 2e-3 of the twin in fp16 and 1e-2 in bf16, relative to the largest output; equal inputs give equal bits.
    """
    num_sequences, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    padded = 1 << (group - 1).bit_length()
    q = q.contiguous()
    out = torch.empty_like(q) if out is None else out
    num_splits = choose_num_splits(num_sequences, num_kv_heads, is_padded)
    shares = (num_sequences, num_kv_heads, num_splits)
    partial = stats = arrivals = None
    if num_splits > 1:
        partial = torch.empty((*shares, group, head_dim), dtype=torch.float32, device=q.device)
        stats = torch.empty((*shares, 2, group), dtype=torch.float32, device=q.device)
        arrivals = get_arrivals(q.device)
    kernel()[shares](
        q, k_cache, v_cache, block_table, lengths, out, partial, stats, arrivals, head_dim**-0.5,
        q.stride(0), out.stride(0), block_table.stride(0), *k_cache.stride()[:3],
        NUM_SPLITS=num_splits, MERGED_SPLITS=min(num_splits, _MAX_SPLITS), GROUP=group, ROWS=max(_MIN_ROWS, padded),
        MERGED_ROWS=padded, BLOCK=block_size, DIM=head_dim, num_stages=choose_num_stages(k_cache),
        **depend(q.device, num_sequences),
    )  # fmt: skip
    return out
