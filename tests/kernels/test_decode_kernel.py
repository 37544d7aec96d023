"""The Triton decode kernel against its plain twin: interpreted on the CPU, compiled on the GPU."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.paged import GROUPS, HEAD_SIZES, INTERPRETED, DecodeCase, compare_decodes, measure_error
from tests.processes import run_command
from tilewise.kernels import reference
from tilewise.kernels.triton import decode_attention as attention

TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
COMPILED = [
    DecodeCase(group, block_size, dtype, num_kv_heads=8, head_dim=128, num_padding=num_padding)
    for dtype in ("bfloat16", "float16")
    for group in (1, 4, 6, 8)
    for block_size in (16, 64)
    for num_padding in (0, 3, 11, 27, 60)  # 8, 8, 4, 2 and 1 programs a context
] + [
    DecodeCase(group, 64, dtype, num_kv_heads, head_dim)
    for dtype in ("bfloat16", "float16")
    for group in GROUPS
    for head_dim in HEAD_SIZES
    for num_kv_heads in (1, 2, 4)  # 64, 16 and 16 programs a context
]
COMPILED += [  # more shares than are merged at once
    DecodeCase(7, 64, dtype, num_kv_heads=1, head_dim=64, lengths=(4096, 1100, 2049))
    for dtype in ("bfloat16", "float16")
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_interpreted_kernel_equals_its_twin_and_no_poison_leaks(repository: Path) -> None:
    # In a process of its own: Triton reads the variable when it is imported, and it would hold for every test.
    paths = os.pathsep.join((str(repository / "src"), str(repository)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.kernels.paged"]
    done = run_command(command, cwd=repository, env=environment, check=True)
    errors, shares = json.loads(done.stdout.splitlines()[-1])
    # Up to 16 blocks one each, as where fewer programs share a context; then two each, or more where 64 are too few.
    assert shares == {"1": 1, "2": 2, "4": 4, "8": 8, "16": 16, "17": 9, "32": 16, "33": 17, "128": 64, "129": 43}
    assert errors.keys() == {case.name for case in INTERPRETED}
    wrong = {case.name: errors[case.name] for case in INTERPRETED if not errors[case.name] < TOLERANCES[case.dtype]}
    assert not wrong


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_compiled_kernel_equals_its_twin_and_no_poison_leaks(case: DecodeCase) -> None:
    assert compare_decodes(case, "cuda") < TOLERANCES[case.dtype]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("num_kv_heads", [1, 8])  # 64 and 16 programs a context
def test_the_last_of_many_programs_finds_what_all_others_wrote_and_repeats_its_bits(num_kv_heads: int) -> None:
    length, group = 64 * 64, 6
    q = torch.randn(2, num_kv_heads * group, 128, device="cuda").bfloat16()
    k_cache, v_cache = (torch.randn(128, 64, num_kv_heads, 128, device="cuda").bfloat16() for _ in range(2))
    table = torch.randperm(128, device="cuda", dtype=torch.int32).view(2, 64)
    lengths = torch.tensor([length, 0], dtype=torch.int32, device="cuda")
    out = torch.zeros_like(q)
    expected = attention.attend_decodes(q, k_cache, v_cache, table, lengths, out).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.attend_decodes(q, k_cache, v_cache, table, lengths, out)
    for _ in range(2000):
        out[0] = torch.nan
        graph.replay()
        assert torch.equal(out, expected)
    for number in (1, 60, 64, 65, 64 * 17, 2049, length):  # the grid stays, the number of shares does not
        lengths[0] = number
        graph.replay()
        wide = q[:1].float(), k_cache.float(), v_cache.float(), table[:1], lengths[:1]
        assert measure_error(out[:1], reference.attend_decodes(*wide)) < TOLERANCES["bfloat16"]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 8])
def test_a_grid_fills_a_large_gpu_and_every_shared_context_has_a_counter(num_kv_heads: int) -> None:
    counters = len(attention.get_arrivals(torch.device("cpu")))
    for num_sequences in range(1, 600):
        for is_padded in (True, False):
            num_splits = attention.choose_num_splits(num_sequences, num_kv_heads, is_padded)
            assert num_splits == 1 or num_sequences * num_kv_heads <= counters
        num_programs = num_sequences * num_kv_heads * num_splits
        assert num_splits in (1, 2, 4, 8, 16, 64)
        assert num_programs > 256 or num_splits == 64 or (num_splits == 16 and num_programs >= 128)


def test_a_context_of_the_26b_is_shared_by_16_programs_at_most() -> None:
    assert [attention.choose_num_splits(size, 8) for size in (1, 4, 8, 16, 32, 64)] == [16, 16, 8, 4, 2, 1]
    assert [attention.choose_num_splits(size, 8, is_padded=True) for size in (1, 8, 64, 128)] == [16, 16, 8, 4]


@pytest.mark.parametrize("head_dim", [8, 80, 96])
def test_head_sizes_that_the_matrix_units_cannot_take_are_declined_by_name(head_dim: int) -> None:
    tensor = torch.zeros(1, 2, head_dim)
    assert f"head size {head_dim}" in (attention.decline_shapes(tensor, tensor) or "")


def test_blocks_that_no_small_card_has_shared_memory_for_are_declined_and_the_26b_s_are_not() -> None:
    for dtype, block_size, head_dim, is_declined in (
        (torch.bfloat16, 64, 128, False),
        (torch.bfloat16, 128, 128, False),
        (torch.float32, 64, 128, False),
        (torch.float32, 128, 128, True),
        (torch.bfloat16, 128, 256, True),
    ):
        k_cache = torch.zeros(1, block_size, 2, head_dim, dtype=dtype)
        assert bool(attention.decline_shapes(torch.zeros(1, 2, head_dim, dtype=dtype), k_cache)) == is_declined


def test_a_cache_of_another_dtype_is_declined_by_name() -> None:
    q, k_cache = torch.zeros(1, 2, 64), torch.zeros(1, 16, 2, 64, dtype=torch.float16)
    assert "torch.float16" in (attention.decline_shapes(q, k_cache) or "")


def test_the_cpu_is_declined_by_name() -> None:
    tensor = torch.zeros(1, 2, 64)
    assert attention.decline_decodes(tensor, tensor) == "not a CUDA device"
