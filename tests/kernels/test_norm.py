"""The Triton norms against their plain twins: interpreted on the CPU, compiled on the GPU.

Tolerance, relative to the largest value: 1e-5 in fp32, 2e-3 in fp16, 1.6e-2 in bf16; and in half precision at most
one value of a hundred may differ at all.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreted import assert_twins, compare_interpreted, rounds_like_torch, run_interpreted
from tilewise import kernels
from tilewise.kernels import dispatch, reference
from tilewise.kernels.triton import norm

EPS = 1e-5
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@dataclass(frozen=True)
class Case:
    rows: int
    width: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}-{self.dtype}"

    def draw(self, *shape: int, device: str, seed: int) -> Tensor:
        values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        return values.to(device, getattr(torch, self.dtype))


# The towers' widths are 3200 and 1024, the smallest decoder's 896; 100 and 1 are nobody's.
SHAPES = ((1, 3200), (3, 100), (17, 384), (3, 6144), (5, 1024), (3, 896), (1, 1))
INTERPRETED = tuple(Case(*shape, dtype) for dtype in ("float32", "float16", "bfloat16") for shape in SHAPES)
COMPILED = tuple(
    Case(*shape, dtype)
    for dtype in ("bfloat16", "float16", "float32")
    for shape in (*SHAPES, (1025, 3200), (17, 16384))
)


def compare(case: Case, device: str) -> None:
    rows, width = case.rows, case.width
    packed = 3 * case.draw(rows, 3 * width, device=device, seed=0)
    weight, other = (1 + 0.3 * case.draw(width, device=device, seed=seed) for seed in (1, 2))
    x = packed[:, width : 2 * width]  # rows of a wider tensor
    assert_twins(norm.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    tiles = x.reshape(1, rows, width)
    assert_twins(norm.rms_norm(tiles, weight, EPS), reference.rms_norm(tiles, weight, EPS))

    residual, before = 5 * case.draw(rows, width, device=device, seed=3), packed.clone()
    for scale in (None, 0.1 * case.draw(width, device=device, seed=4)):
        normed, total = norm.add_rms_norm(residual, x, weight, EPS, scale)
        expected, expected_total = reference.add_rms_norm(residual, x, weight, EPS, scale)
        assert_twins(normed, expected)
        assert_twins(total, expected_total)
        assert not rounds_like_torch(total) or torch.equal(total, expected_total)
        shifted = 7 + residual  # or a norm that forgets the mean would be close
        normed, total = norm.add_layer_norm(shifted, x, weight, other, EPS, scale)
        expected, expected_total = reference.add_layer_norm(shifted, x, weight, other, EPS, scale)
        assert_twins(normed, expected)
        assert_twins(total, expected_total)
        assert not rounds_like_torch(total) or torch.equal(total, expected_total)
    assert torch.equal(packed, before)

    expected = packed.clone()
    norm.rms_norm_queries_and_keys_(packed, weight, other, EPS)
    reference.rms_norm_queries_and_keys_(expected, weight, other, EPS)
    assert_twins(packed, expected)
    assert torch.equal(packed[:, 2 * width :], before[:, 2 * width :])


@needs_triton
def test_interpreted_norms_equal_their_twins(repository: Path) -> None:
    assert run_interpreted("tests.kernels.test_norm", repository) == [str(case) for case in INTERPRETED]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_norms_equal_their_twins(case: Case) -> None:
    assert dispatch.decline(case.draw(1, device="cuda", seed=0)) is None
    compare(case, "cuda")


def test_queries_and_keys_are_normalised_in_place_over_their_whole_widths() -> None:
    qkv = torch.randn(2, 5, 3 * 48, generator=torch.Generator().manual_seed(0))
    q_weight, k_weight = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    q, k, v = (part.clone() for part in qkv.chunk(3, dim=-1))
    kernels.rms_norm_queries_and_keys_(qkv, q_weight, k_weight, EPS)
    parts = (kernels.rms_norm(q, q_weight, EPS), kernels.rms_norm(k, k_weight, EPS), v)
    assert torch.equal(qkv, torch.cat(parts, dim=-1))


def test_a_branch_is_scaled_and_added_as_the_dtype_rounds_and_the_sum_is_normalised() -> None:
    residual, x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, scale = torch.randn(2, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    normed, total = kernels.add_rms_norm(residual, x, weight, EPS, scale)
    scaled = (x.double() * scale.double()).bfloat16()
    assert torch.equal(total, (residual.double() + scaled.double()).bfloat16())
    assert torch.equal(normed, kernels.rms_norm(total, weight, EPS))


def test_a_layer_norm_behind_a_branch_is_that_of_the_rounded_sum() -> None:
    residual, x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, bias, scale = torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    normed, total = kernels.add_layer_norm(residual, x, weight, bias, EPS, scale)
    assert torch.equal(total, kernels.add_rms_norm(residual, x, weight, EPS, scale)[1])
    assert torch.equal(normed, torch.nn.functional.layer_norm(total, (48,), weight, bias, EPS))


def test_tensors_that_need_gradients_are_declined_by_name() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    assert dispatch.decline(x) == "gradients are needed"
    with torch.no_grad():
        assert dispatch.decline(x) == "not a CUDA device"


def test_mixed_and_double_dtypes_are_declined_by_name() -> None:
    x = torch.zeros(2, 4)
    assert "torch.bfloat16, torch.float32" in (dispatch.decline(x, x.bfloat16()) or "")
    assert "torch.float64" in (dispatch.decline(x.double()) or "")


def test_a_last_axis_with_gaps_is_declined_by_name() -> None:
    assert dispatch.decline(torch.zeros(4, 4).T) == "a last axis is not dense"


def test_rows_that_do_not_fit_are_declined_by_name() -> None:
    wide = torch.zeros(1, norm.MAX_WIDTH + 1)
    assert str(norm.MAX_WIDTH) in (norm.decline_row(wide, wide[0]) or "")
    assert "(3,)" in (norm.decline_row(torch.zeros(1, 4), torch.zeros(3)) or "")
    packed = torch.zeros(6, 2, 4).transpose(0, 1)
    assert "contiguous" in (norm.decline_packed(packed, torch.zeros(1), torch.zeros(1)) or "")


def test_training_takes_gradients_through_the_public_operations() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    normed, total = kernels.add_rms_norm(x, x, weight, EPS)
    (kernels.rms_norm(x, weight, EPS).sum() + normed.sum() + total.sum()).backward()
    assert x.grad is not None
    assert weight.grad is not None


if __name__ == "__main__":
    compare_interpreted(INTERPRETED, compare)
