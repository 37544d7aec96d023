"""The Triton prefill kernel against the textbook: interpreted on the CPU, compiled on the GPU."""

import importlib.util
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.kernels.interpreted import compare_interpreted, run_interpreted
from tests.kernels.paged import GROUPS, HEAD_SIZES, attend_densely, measure_error, scatter
from tilewise.kernels.batch import QUERIES, count_items, list_items
from tilewise.kernels.triton.prefill_attention import attend_items

TOLERANCES = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@dataclass(frozen=True)
class Case:
    dtype: str
    group: int
    block_size: int
    starts: tuple[int, ...] = (0, 0, 61, 70)
    ends: tuple[int, ...] = (1, 70, 62, 135)
    head_dim: int = 16
    num_kv_heads: int = 1

    def __str__(self) -> str:
        return f"{self.dtype}-group{self.group}x{self.num_kv_heads}-block{self.block_size}-dim{self.head_dim}"


# Every head size and number of queries a key of the family; fp16 stands for bf16, whose products are not interpreted
# rightly.
FAMILY = tuple(
    Case(("float32", "float16")[number % 2], group, 64, (0, 61), (70, 64), head_dim)
    for number, (group, head_dim) in enumerate(itertools.product(GROUPS, HEAD_SIZES))
)
INTERPRETED = (Case("float32", 6, 64), Case("float32", 1, 16), Case("float16", 2, 16), *FAMILY)
COMPILED = [
    Case(dtype, 6, block_size, (0, 0, 500, 1300, 7), (1, 700, 501, 1831, 64), 128, 8)
    for dtype in ("float32", "float16", "bfloat16")
    for block_size in (16, 64, 128)
] + [
    Case(dtype, group, 64, (0, 500, 7), (700, 501, 64), head_dim, 2)
    for dtype in ("float16", "bfloat16")
    for group in GROUPS
    for head_dim in HEAD_SIZES
]


def compare(case: Case, device: str) -> None:
    """Chunks in one launch, with rows before them, between them and behind them that are not theirs."""
    dtype = getattr(torch, case.dtype)
    paged = scatter(case.ends, case.block_size, case.num_kv_heads, case.head_dim)
    places = [3]
    for start, end in zip(case.starts, case.ends, strict=True):
        places.append(places[-1] + end - start + 1)
    q = torch.randn(places[-1] + 2, case.num_kv_heads * case.group, case.head_dim).to(dtype).to(device)
    k_cache, v_cache = (cache.to(dtype).to(device) for cache in (paged.k_cache, paged.v_cache))
    chunks = [(row, places[row], *ends) for row, ends in enumerate(zip(case.starts, case.ends, strict=True))]
    items = torch.tensor([*list_items(chunks), (0, 0, 0, 0)], dtype=torch.int32, device=device)
    out = torch.full_like(q, math.nan)
    attend_items(q, k_cache, v_cache, paged.table.to(device), items, out)
    written = torch.zeros(len(q), dtype=torch.bool)
    for row, first, start, end in chunks:
        rows = slice(first, first + end - start)
        k, v = (part[row, :end].to(dtype) for part in (paged.k, paged.v))
        assert measure_error(out[rows].cpu(), attend_densely(q[rows].cpu(), k, v)) < TOLERANCES[case.dtype]
        written[rows] = True
    assert out[~written.to(device)].isnan().all(), "a row that is nobody's was written"


@needs_triton
def test_interpreted_chunks_equal_the_textbook_and_write_their_own_rows_alone(repository: Path) -> None:
    assert run_interpreted("tests.kernels.test_prefill", repository) == [str(case) for case in INTERPRETED]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_chunks_equal_the_textbook_and_write_their_own_rows_alone(case: Case) -> None:
    compare(case, "cuda")


def test_items_cover_every_query_once_and_are_no_more_than_counted() -> None:
    chunks = [(0, 5, 0, 1), (1, 6, 10, 10 + QUERIES), (2, 6 + QUERIES, 3, 4 + 2 * QUERIES)]
    items = list(list_items(chunks))
    covered = [(row, position + i, first + i) for first, n, row, position in items for i in range(n)]
    assert covered == [(row, p, first + p - start) for row, first, start, end in chunks for p in range(start, end)]
    num_tokens = sum(end - start for _, _, start, end in chunks)
    assert len(items) <= count_items(num_tokens, len(chunks))


if __name__ == "__main__":
    torch.manual_seed(0)
    compare_interpreted(INTERPRETED, compare)
