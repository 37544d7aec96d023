"""Paged contexts on random blocks, every slot that nobody wrote poisoned with NaN; and the comparison of decode twins.

Run as a program it compares under Triton's interpreter, which must be chosen before Triton is imported, and prints
one JSON object: case -> error. What kernels leave unwritten between them is NaN there.
"""

import itertools
import json
import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTHS = (1, 63, 64, 65, 300)


@dataclass(frozen=True)
class DecodeCase:
    group: int
    block_size: int
    dtype: str
    num_kv_heads: int = 2
    head_dim: int = 32
    num_padding: int = 0
    lengths: tuple[int, ...] = LENGTHS
    num_launches: int = 2  # what the first one leaves behind is what the second one finds

    @property
    def name(self) -> str:
        sizes = f"group{self.group}x{self.num_kv_heads}-block{self.block_size}-dim{self.head_dim}"
        longest = "" if self.lengths == LENGTHS else f"-length{max(self.lengths)}"
        return f"{self.dtype}-{sizes}{f'-padding{self.num_padding}' if self.num_padding else ''}{longest}"


@dataclass(frozen=True)
class Paged:
    """Shapes: k, v: (B, longest, Hkv, D), what each sequence wrote · the rest as kernels take it."""

    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    table: Tensor
    lengths: Tensor


def poison(num_blocks: int, block_size: int, num_heads: int, head_dim: int) -> Tensor:
    return torch.full((num_blocks, block_size, num_heads, head_dim), math.nan)


def scatter(lengths: tuple[int, ...], block_size: int, num_heads: int, head_dim: int, seed: int = 0) -> Paged:
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 3
    free = torch.randperm(num_blocks, generator=generator).tolist()
    table = torch.full((len(lengths), max(counts) + 2), -1, dtype=torch.int32)
    k_cache, v_cache = (poison(num_blocks, block_size, num_heads, head_dim) for _ in range(2))
    k, v = (torch.randn(len(lengths), max(lengths), num_heads, head_dim, generator=generator) for _ in range(2))
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        blocks, free = free[:count], free[count:]
        table[row, :count] = torch.tensor(blocks)
        slots = torch.tensor([blocks[i // block_size] * block_size + i % block_size for i in range(length)])
        k_cache.flatten(0, 1)[slots] = k[row, :length]
        v_cache.flatten(0, 1)[slots] = v[row, :length]
    return Paged(k, v, k_cache, v_cache, table, torch.tensor(lengths, dtype=torch.int32))


def attend_densely(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The textbook, in fp64: the last queries of a sequence over all its keys. q: (n, Hq, D), k, v: (S, Hkv, D)."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + len(k) - len(q))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -math.inf).softmax(-1), v)


def measure_error(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value; NaN stays NaN."""
    return ((ours.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def compare_decodes(case: DecodeCase, device: str) -> float:
    """Triton's kernel against its plain twin in fp32, on the same rounded inputs, for rows of a larger tensor.

    Rows of length 0 follow those that are compared, and another row follows them: none of them may be written.
    """
    from tilewise.kernels import reference
    from tilewise.kernels.triton import decode_attention as attention

    dtype = getattr(torch, case.dtype)
    paged = scatter(case.lengths, case.block_size, case.num_kv_heads, case.head_dim)
    number, size = len(case.lengths), len(case.lengths) + case.num_padding
    q = torch.randn(size, case.num_kv_heads * case.group, case.head_dim)
    q, k_cache, v_cache = (x.to(dtype).to(device) for x in (q, paged.k_cache, paged.v_cache))
    table, lengths = (F.pad(x.mT, (0, case.num_padding)).mT.to(device) for x in (paged.table, paged.lengths[:, None]))
    out = torch.full((size + 1, 2, *q.shape[1:]), 7.0, dtype=dtype, device=device)
    for _ in range(case.num_launches):
        out[:number, 1] = math.nan
        returned = attention.attend_decodes(q, k_cache, v_cache, table.contiguous(), lengths[:, 0], out[:size, 1])
        assert returned.data_ptr() == out[0, 1].data_ptr()
        assert not attention.get_arrivals(q.device).any()
        assert (out[:, 0] == 7).all()
        assert (out[number:] == 7).all()
    wide = q[:number].float(), k_cache.float(), v_cache.float(), table[:number], lengths[:number, 0]
    return measure_error(out[:number, 1].cpu(), reference.attend_decodes(*wide).cpu())


def count_shares(num_blocks: int, device: str) -> int:
    """Say how many programs of the many that may share a long context take part in one of so many blocks."""
    from tilewise.kernels.triton import decode_attention as attention

    num_splits = attention.choose_num_splits(1, 1)
    q, out = torch.ones(1, 1, 16, device=device), torch.empty(1, 1, 16, device=device)
    cache = torch.ones(1, 16, 1, 16, device=device)
    table = torch.zeros(1, num_blocks, dtype=torch.int32, device=device)
    lengths = torch.full((1,), 16 * num_blocks, dtype=torch.int32, device=device)
    partial = torch.empty(num_splits, 16, device=device)
    stats = torch.full((2, num_splits), math.nan, device=device)
    attention.kernel()[(1, 1, num_splits)](
        q, cache, cache, table, lengths, out, partial, stats, attention.get_arrivals(q.device), 1.0,
        16, 16, num_blocks, *cache.stride()[:3],
        NUM_SPLITS=num_splits, MERGED_SPLITS=16, GROUP=1, ROWS=16, MERGED_ROWS=1, BLOCK=16, DIM=16, IS_DEPENDENT=False,
    )  # fmt: skip
    return max(1, int(stats[0].isfinite().sum()))  # one alone has nothing to hand over


# The model's group is 6; 1, 4 and 8 are its kin's. One KV head but once: every program of the grid costs 5 ms. A wide
# batch has one program a context.
SHAPES = ((1, 64, 1, 3), (4, 16, 1, 3), (6, 64, 2, 1), (6, 16, 1, 60), (8, 64, 1, 3), (6, 16, 1, 300))
# Every head size and number of queries a key of the family; fp16 stands for bf16, whose products are not interpreted
# rightly.
HEAD_SIZES, GROUPS = (32, 64, 128), (1, 2, 4, 5, 6, 7, 8)
FAMILY = tuple(
    DecodeCase(
        group, 64, ("float32", "float16")[number % 2], num_kv_heads=1, head_dim=head_dim, lengths=(300,), num_launches=1
    )
    for number, (group, head_dim) in enumerate(itertools.product(GROUPS, HEAD_SIZES))
)
NUM_BLOCKS = (1, 2, 4, 8, 16, 17, 32, 33, 128, 129)
INTERPRETED = (
    *(
        DecodeCase(group, block_size, dtype, num_kv_heads, num_padding=num_padding)
        for dtype, shapes in (("float32", SHAPES), ("float16", SHAPES[2:4]))
        for group, block_size, num_kv_heads, num_padding in shapes
    ),
    *FAMILY,
    DecodeCase(
        7, 4, "float32", num_kv_heads=1, head_dim=16, lengths=(300,)
    ),  # 38 shares of two blocks: merged in three turns
)

if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # so that new tensors are NaN until they are written
    errors = {case.name: compare_decodes(case, "cpu") for case in INTERPRETED}
    print(json.dumps([errors, {number: count_shares(number, "cpu") for number in NUM_BLOCKS}]))
