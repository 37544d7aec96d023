"""The Triton decode kernel against its plain twin: interpreted on the CPU, compiled on the GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.paged import INTERPRETED, DecodeCase, compare_decodes
from tilewise.kernels import attention

TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
COMPILED = [
    DecodeCase(group, block_size, dtype, num_kv_heads=8, head_dim=128)
    for dtype in ("bfloat16", "float16")
    for group in (1, 4, 6, 8)
    for block_size in (16, 64)
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_interpreted_kernel_equals_its_twin_and_no_poison_leaks(repository: Path) -> None:
    # In a process of its own: Triton reads the variable when it is imported, and it would hold for every test.
    paths = os.pathsep.join((str(repository / "src"), str(repository)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.paged"],
        cwd=repository,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors.keys() == {case.name for case in INTERPRETED}
    wrong = {case.name: errors[case.name] for case in INTERPRETED if not errors[case.name] < TOLERANCES[case.dtype]}
    assert not wrong


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_compiled_kernel_equals_its_twin_and_no_poison_leaks(case: DecodeCase) -> None:
    assert compare_decodes(case, "cuda") < TOLERANCES[case.dtype]


@pytest.mark.parametrize("head_dim", [8, 80, 96])
def test_head_sizes_that_the_matrix_units_cannot_take_are_declined_by_name(head_dim: int) -> None:
    tensor = torch.zeros(1, 2, head_dim)
    assert f"head size {head_dim}" in (attention.decline_shapes(tensor, tensor) or "")


def test_a_cache_of_another_dtype_is_declined_by_name() -> None:
    q, k_cache = torch.zeros(1, 2, 64), torch.zeros(1, 16, 2, 64, dtype=torch.float16)
    assert "torch.float16" in (attention.decline_shapes(q, k_cache) or "")


def test_the_cpu_is_declined_by_name() -> None:
    tensor = torch.zeros(1, 2, 64)
    assert attention.decline_decodes(tensor, tensor) == "not a CUDA device"
