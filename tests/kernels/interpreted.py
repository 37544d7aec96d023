"""Kernels against their twins: what counts as equal, and the same comparisons under Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, and it would hold for every test: so a test module that is run as a
program compares its own cases, in a process of its own.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tests.processes import run_command

Case = TypeVar("Case")
# Of the largest value. In half precision a value at a rounding edge may fall to the other side, once before a product
# and once behind it: two steps of 2^-10 in fp16, of 2^-7 in bf16. More than a few such values are no accident.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
EDGE_SHARE = 100
# NOTE: Triton's interpreter cuts bf16 off where it should round, and multiplies matrices of bf16 as if they were
# integers (3.9): elementwise kernels are held there to twice the tolerance, and those with a `tl.dot` not in bf16.
CUT_OFF = torch.bfloat16
CANCELLED = 1e-6  # what is left of GELU far below zero is noise, and equal in no two implementations


def assert_twins(ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    errors = (ours.double() - expected.double()).abs() / expected.double().abs().max()
    is_cut_off = ours.dtype == CUT_OFF and not ours.is_cuda
    assert errors.max() < TOLERANCES[ours.dtype] * (2 if is_cut_off else 1), errors.max()
    if rounds_like_torch(ours):
        unequal = int((errors > CANCELLED).sum())
        assert unequal <= 3 + ours.numel() // EDGE_SHARE, f"{unequal} of {ours.numel()} values are not the twin's"


def rounds_like_torch(ours: Tensor) -> bool:
    """A kernel's values in half precision are nearly all its twin's to the bit."""
    return ours.dtype != torch.float32 and (ours.dtype != CUT_OFF or ours.is_cuda)


def run_interpreted(module: str, repository: Path) -> list[str]:
    """The names of the cases that `module`, run as a program, has compared."""
    paths = os.pathsep.join((str(repository / "src"), str(repository)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = run_command([sys.executable, "-m", module], cwd=repository, env=environment, check=True)
    return done.stdout.split()


def compare_interpreted(cases: Iterable[Case], compare: Callable[[Case, str], None]) -> None:
    """What such a program does."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    for case in cases:
        compare(case, "cpu")
        print(case)
