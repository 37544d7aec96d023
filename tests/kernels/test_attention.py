"""`attend` and the plain attentions against the textbook in fp64."""

import pytest
import torch
from torch import Tensor

from tests.kernels.paged import LENGTHS, attend_densely, measure_error, poison, scatter
from tilewise import kernels
from tilewise.kernels import AttentionBatch, PrefillChunk, reference
from tilewise.kernels.batch import list_items

TOLERANCE = 1e-5
BLOCK = 16
HEADS, KV_HEADS, DIM = 6, 2, 16


class Sequence:
    """One sequence's tokens, and the blocks that hold its context."""

    def __init__(self, length: int, blocks: tuple[int, ...], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.q = torch.randn(length, HEADS, DIM, generator=generator)
        self.k, self.v = (torch.randn(length, KV_HEADS, DIM, generator=generator) for _ in range(2))
        self.blocks = blocks

    def expected(self, start: int, end: int) -> Tensor:
        return attend_densely(self.q[start:end], self.k[:end], self.v[:end])


Part = tuple[Sequence, int, int]


def run_step(
    caches: tuple[Tensor, Tensor], decodes: list[Part], prefills: list[Part], *, as_captured: bool = False
) -> Tensor:
    device = caches[0].device
    parts = [*decodes, *prefills]
    positions = [position for _, start, end in parts for position in range(start, end)]
    slots = [s.blocks[p // BLOCK] * BLOCK + p % BLOCK for s, start, end in parts for p in range(start, end)]
    chunks: list[PrefillChunk] = []
    offset = len(decodes)
    for _, start, end in prefills:
        chunks.append(PrefillChunk(offset, start, end))
        offset += end - start
    items = list_items((row, c.offset, c.start, c.end) for row, c in enumerate(chunks) if c.start or as_captured)
    batch = AttentionBatch(
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        num_decodes=len(decodes),
        block_table=block_table(decodes).to(device),
        lengths=torch.tensor([end for _, _, end in decodes], dtype=torch.int32, device=device),
        chunks=() if as_captured else tuple(chunks),
        chunk_table=block_table(prefills).to(device),
        items=torch.tensor(list(items), dtype=torch.int32, device=device).reshape(-1, 4),
    )
    dtype = caches[0].dtype
    q, k, v = (torch.cat([getattr(s, name)[start:end] for s, start, end in parts]).to(device, dtype) for name in "qkv")
    kernels.write_kv(k, v, *caches, batch.slots)
    return kernels.attend_cached(q, None if as_captured else (k, v), *caches, batch)


def block_table(parts: list[Part]) -> Tensor:
    width = max((len(sequence.blocks) for sequence, _, _ in parts), default=0)
    table = [[*sequence.blocks, *[-1] * (width - len(sequence.blocks))] for sequence, _, _ in parts]
    return torch.tensor(table, dtype=torch.int32).reshape(len(parts), width)


def empty_caches(num_blocks: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    k_cache, v_cache = (poison(num_blocks, BLOCK, KV_HEADS, DIM).to(device, dtype) for _ in range(2))
    return k_cache, v_cache


@pytest.mark.parametrize("split", range(1, 40))
def test_a_continued_chunk_equals_one_shot_for_every_split_point(split: int) -> None:
    sequence = Sequence(40, blocks=(5, 0, 3), seed=split)
    whole = run_step(empty_caches(7), [], [(sequence, 0, 40)])
    caches = empty_caches(7)
    halves = [run_step(caches, [], [(sequence, 0, split)]), run_step(caches, [], [(sequence, split, 40)])]
    assert measure_error(whole, sequence.expected(0, 40)) < TOLERANCE
    assert measure_error(torch.cat(halves), whole) < TOLERANCE


def test_token_by_token_equals_one_shot() -> None:
    sequence = Sequence(40, blocks=(2, 6, 1), seed=0)
    caches = empty_caches(7)
    outputs = [run_step(caches, [(sequence, position, position + 1)], []) for position in range(40)]
    assert measure_error(torch.cat(outputs), sequence.expected(0, 40)) < TOLERANCE


def mixed_step(device: str = "cpu", dtype: torch.dtype = torch.float32, *, as_captured: bool = False) -> float:
    """Two decodes, a fresh chunk and a continued one in one step, among poisoned free blocks."""
    a, b = Sequence(17, blocks=(8, 1), seed=1), Sequence(50, blocks=(4, 9, 2, 11), seed=2)
    fresh, continued = Sequence(20, blocks=(6, 3), seed=3), Sequence(45, blocks=(10, 5, 7), seed=4)
    caches = empty_caches(13, device, dtype)
    run_step(caches, [], [(a, 0, 16), (b, 0, 49), (continued, 0, 21)])
    parts = [(a, 16, 17), (b, 49, 50), (fresh, 0, 20), (continued, 21, 45)]
    out = run_step(caches, parts[:2], parts[2:], as_captured=as_captured)
    return measure_error(out.cpu(), torch.cat([s.expected(start, end) for s, start, end in parts]))


def test_decodes_and_chunks_of_one_step_do_not_see_each_other() -> None:
    assert mixed_step() < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("as_captured", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 3e-2)])
def test_decodes_and_chunks_of_one_step_equal_the_textbook_on_the_gpu(
    dtype: str, tolerance: float, as_captured: bool
) -> None:
    assert mixed_step("cuda", getattr(torch, dtype), as_captured=as_captured) < tolerance


@pytest.mark.parametrize("group", [1, 4, 6, 8])
@pytest.mark.parametrize("block_size", [16, 64])
def test_paged_decodes_equal_full_attention_and_no_poison_leaks(group: int, block_size: int) -> None:
    paged = scatter(LENGTHS, block_size, KV_HEADS, DIM)
    q = torch.randn(len(LENGTHS), KV_HEADS * group, DIM, generator=torch.Generator().manual_seed(1))
    out = reference.attend_decodes(q, paged.k_cache, paged.v_cache, paged.table, paged.lengths)
    for row, length in enumerate(LENGTHS):
        expected = attend_densely(q[row : row + 1], paged.k[row, :length], paged.v[row, :length])
        assert measure_error(out[row : row + 1], expected) < TOLERANCE


def test_tiles_are_attended_to_one_by_one() -> None:
    q, k, v = (torch.randn(3, 17, 4, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    out = kernels.attend_tiles(q, k, v)
    scores = torch.einsum("nqhd,nkhd->nhqk", q.double(), k.double()) / 4
    assert measure_error(out, torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v.double())) < TOLERANCE


@pytest.mark.gpu
def test_tiles_of_1025_positions_equal_the_plain_twin_on_the_gpu() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1025, 25, 128, generator=generator).cuda().bfloat16() for _ in range(3))
    expected = reference.attend_tiles(q.float(), k.float(), v.float())
    assert measure_error(kernels.attend_tiles(q, k, v), expected) < 1e-2
