"""Rope with the cache write in Triton against its plain twin: interpreted on the CPU, compiled on the GPU.

Tolerance, relative to the largest value: 1e-5 in fp32, 2e-3 in fp16, 1.6e-2 in bf16; in half precision at most one
value of a hundred may differ at all, and values are copied to the bit.
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreted import assert_twins, compare_interpreted, run_interpreted
from tests.kernels.paged import poison
from tilewise import kernels
from tilewise.kernels import AttentionBatch, HeadNorms, PrefillChunk, dispatch, reference
from tilewise.kernels.triton import rope

BLOCK = 16
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@dataclass(frozen=True)
class Case:
    tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    has_norms: bool = False

    def __str__(self) -> str:
        name = f"{self.tokens}x{self.num_heads}/{self.num_kv_heads}x{self.head_dim}-{self.dtype}"
        return f"{name}-norms" if self.has_norms else name

    def draw_norms(self, device: str) -> HeadNorms | None:
        if not self.has_norms:
            return None
        weights = 1 + 0.3 * torch.randn(2, self.head_dim, generator=torch.Generator().manual_seed(2))
        q_weight, k_weight = weights.to(device, getattr(torch, self.dtype))
        return HeadNorms(q_weight, k_weight, 1e-6)


@dataclass(frozen=True)
class Inputs:
    qkv: Tensor
    cos: Tensor
    sin: Tensor
    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor

    def arguments(self) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        return self.qkv, (self.cos, self.sin), self.k_cache, self.v_cache, self.slots

    def twin(self) -> "Inputs":
        return Inputs(self.qkv, self.cos, self.sin, self.k_cache.clone(), self.v_cache.clone(), self.slots)


SHAPES = ((1, 48, 8, 128), (3, 48, 8, 32), (17, 6, 2, 32), (3, 6, 3, 24), (3, 8, 4, 128), (1, 6, 1, 80))
# Every head size and number of queries a key of the family, with norms in turns.
FAMILY = tuple((1, 2 * group, 2, head_dim) for head_dim in (32, 64, 128) for group in (1, 2, 4, 5, 6, 7, 8))
INTERPRETED = tuple(
    Case(*shape, dtype, has_norms)
    for number, dtype in enumerate(("float32", "float16", "bfloat16"))
    for shapes, kinds in ((SHAPES, (False, True)), (FAMILY, (number % 2 == 0,)))
    for shape in shapes
    for has_norms in kinds
)
COMPILED = tuple(
    Case(*shape, dtype, has_norms)
    for dtype in ("bfloat16", "float16", "float32")
    for shape in (*SHAPES, *FAMILY, (17, 48, 8, 128), (300, 48, 8, 128), (17, 14, 2, 64))
    for has_norms in (False, True)
)


def draw(case: Case, device: str, seed: int = 0) -> Inputs:
    """Every slot poisoned, and every third token a row that pads the batch."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    width = (case.num_heads + 2 * case.num_kv_heads) * case.head_dim
    qkv = torch.randn(case.tokens, width + 16, generator=generator)[:, :width]  # rows of a wider tensor
    angles = 100 * torch.rand(case.tokens, case.head_dim // 2, generator=generator)
    cos, sin = angles.cos().to(device), angles.sin().to(device)
    num_blocks = case.tokens // BLOCK + 3
    slots = torch.randperm(num_blocks * BLOCK, generator=generator)[: case.tokens]
    slots[2::3] = -1
    k_cache, v_cache = (poison(num_blocks, BLOCK, case.num_kv_heads, case.head_dim) for _ in range(2))
    k_cache, v_cache = k_cache.to(device, dtype), v_cache.to(device, dtype)
    return Inputs(qkv.to(device, dtype), cos, sin, k_cache, v_cache, slots.to(device))


def compare(case: Case, device: str) -> None:
    for returns_fresh in (False, True):
        ours, norms = draw(case, device), case.draw_norms(device)
        twin = ours.twin()
        q, fresh = rope.rope_and_write_kv(*ours.arguments(), case.num_heads, returns_fresh, norms)
        expected = reference.rope_and_write_kv(*twin.arguments(), case.num_heads, norms)
        assert_twins(q, expected[0])
        assert_same_cache(ours, twin)
        assert (fresh is not None) == returns_fresh
        if fresh is not None:
            assert_twins(fresh[0], expected[1])
            assert torch.equal(fresh[1], expected[2])


def assert_same_cache(ours: Inputs, twin: Inputs) -> None:
    """Poison where there is poison in the twin's, and the same keys and values elsewhere."""
    assert torch.equal(ours.k_cache.isnan(), twin.k_cache.isnan())
    assert_twins(ours.k_cache.nan_to_num(0.0), twin.k_cache.nan_to_num(0.0))
    assert torch.equal(ours.v_cache.nan_to_num(0.5), twin.v_cache.nan_to_num(0.5))


@needs_triton
def test_interpreted_rope_equals_its_twin_and_writes_to_no_other_slot(repository: Path) -> None:
    assert run_interpreted("tests.kernels.test_rope", repository) == [str(case) for case in INTERPRETED]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_rope_equals_its_twin_and_writes_to_no_other_slot(case: Case) -> None:
    compare(case, "cuda")


@pytest.mark.gpu
@needs_triton
def test_a_captured_graph_follows_the_slots_that_it_is_replayed_with() -> None:
    case = Case(5, 48, 8, 128, "bfloat16")
    ours, later = draw(case, "cuda"), draw(case, "cuda", seed=1)
    assert dispatch.decline(ours.qkv, ours.k_cache, ours.v_cache) is None
    assert rope.decline_layout(ours.cos, ours.sin, ours.k_cache, ours.v_cache, ours.slots) is None
    kernels.rope_and_write_kv(*ours.arguments(), case.num_heads)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q, _ = kernels.rope_and_write_kv(*ours.arguments(), case.num_heads)
    ours.k_cache.fill_(math.nan)
    ours.v_cache.fill_(math.nan)
    for name in ("qkv", "cos", "sin", "slots"):
        getattr(ours, name).copy_(getattr(later, name))
    graph.replay()
    expected, _, _ = reference.rope_and_write_kv(*later.arguments(), case.num_heads)
    assert_twins(q, expected)
    assert_same_cache(ours, later)


def test_a_packed_projection_is_queries_then_keys_then_values() -> None:
    case = Case(4, 6, 2, 16, "float32")
    ours = draw(case, "cpu")
    heads = ours.qkv.unflatten(-1, (10, 16))
    q, fresh = kernels.rope_and_write_kv(*ours.arguments(), 6, returns_fresh=True)
    assert fresh is not None
    assert torch.equal(q, kernels.apply_rope(heads[:, :6], ours.cos, ours.sin))
    assert torch.equal(fresh[0], kernels.apply_rope(heads[:, 6:8], ours.cos, ours.sin))
    assert torch.equal(fresh[1], heads[:, 8:])


def test_rows_that_pad_a_batch_write_to_no_slot() -> None:
    k_cache, v_cache = poison(2, 4, 1, 2), poison(2, 4, 1, 2)
    kernels.write_kv(torch.ones(3, 1, 2), torch.ones(3, 1, 2), k_cache, v_cache, torch.tensor([-1, 5, -1]))
    for cache in (k_cache, v_cache):
        assert (~cache.isnan()).flatten(0, 1).nonzero()[:, 0].unique().tolist() == [5]


def test_caches_that_share_one_allocation_are_written_in_place() -> None:
    both = torch.full((2, 2, 4, 1, 2), math.nan)  # (num_blocks, keys and values, block_size, Hkv, D)
    kernels.write_kv(torch.ones(1, 1, 2), 2 * torch.ones(1, 1, 2), both[:, 0], both[:, 1], torch.tensor([6]))
    assert both[1, 0, 2].eq(1).all()
    assert both[1, 1, 2].eq(2).all()
    assert both.isnan().sum() == both.numel() - 4


def test_a_first_chunk_sees_the_same_from_the_cache_as_from_its_fresh_keys() -> None:
    case = Case(20, 6, 2, 16, "float32")
    ours = draw(case, "cpu")
    slots = torch.arange(20)
    q, fresh = kernels.rope_and_write_kv(*ours.arguments()[:-1], slots, 6, returns_fresh=True)
    empty = torch.empty(0, dtype=torch.int32)
    chunk, table = PrefillChunk(0, 0, 20), torch.tensor([[0, 1]], dtype=torch.int32)
    batch = AttentionBatch(torch.arange(20), slots, 0, empty.reshape(0, 0), empty, (chunk,), table)
    cached = kernels.attend_cached(q, None, ours.k_cache, ours.v_cache, batch)
    torch.testing.assert_close(kernels.attend_cached(q, fresh, ours.k_cache, ours.v_cache, batch), cached)


def test_layouts_that_the_kernel_cannot_address_are_declined_by_name() -> None:
    angles, cache, slots = torch.zeros(3, 8), torch.zeros(2, 4, 1, 16), torch.zeros(3, dtype=torch.int64)
    assert rope.decline_layout(angles, angles, cache, cache, slots) is None
    declined = {
        "torch.bfloat16": (angles.bfloat16(), angles, cache, cache, slots),
        "angles are not contiguous": (torch.zeros(8, 3).T, angles, cache, cache, slots),
        "values as": (angles, angles, cache, torch.zeros(2, 1, 4, 16).transpose(1, 2), slots),
        "head size 15": (angles, angles, cache[..., :15], cache[..., :15], slots),
        "slots": (angles, angles, cache, cache, slots.int()),
    }
    for reason, tensors in declined.items():
        assert reason in (rope.decline_layout(*tensors) or "")


def test_norms_of_another_size_than_the_heads_are_declined_by_name() -> None:
    norms = HeadNorms(torch.ones(16), torch.ones(16), 1e-6)
    assert rope.decline_norms(None, 128) is None
    assert rope.decline_norms(norms, 16) is None
    assert "(16,)" in (rope.decline_norms(norms, 128) or "")


if __name__ == "__main__":
    compare_interpreted(INTERPRETED, compare)
