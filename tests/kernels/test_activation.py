"""The Triton activations against their plain twins: interpreted on the CPU, compiled on the GPU.

Tolerance, relative to the largest value: 1e-5 in fp32, 2e-3 in fp16, 1.6e-2 in bf16; and in half precision at most
one value of a hundred may differ by more than a millionth of it. GELU in half precision is held to fp64, too: 4e-6 and
two rounding steps of fp32 before its one rounding.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.interpreted import assert_twins, compare_interpreted, run_interpreted
from tilewise import kernels
from tilewise.kernels import reference
from tilewise.kernels.triton import activation

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@dataclass(frozen=True)
class Case:
    rows: int
    width: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}-{self.dtype}"


SHAPES = ((1, 16), (3, 100), (17, 1000), (3, 3200), (1, 1))
INTERPRETED = tuple(Case(*shape, dtype) for dtype in ("float32", "float16") for shape in SHAPES)
COMPILED = tuple(
    Case(*shape, dtype)
    for dtype in ("bfloat16", "float16", "float32")
    for shape in (*SHAPES, (1025, 12800), (64, 16384))
)


def compare(case: Case, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    wide = 3 * torch.randn(case.rows, 3 * case.width, generator=generator).to(device, dtype)
    if case.width > 1:  # where the exponential overflows, in the gate and in GELU's input
        wide[0, :2] = wide[-1, case.width : case.width + 2] = torch.tensor([-200.0, 200.0])
    gate_up = wide[:, : 2 * case.width]  # rows of a wider tensor
    assert_twins(activation.silu_and_multiply(gate_up), reference.silu_and_multiply(gate_up))

    bias = torch.randn(case.width, generator=generator).to(device, dtype)
    before = wide.clone()
    for added in (None, bias):
        x = wide[:, case.width : 2 * case.width]
        expected = reference.gelu(x, added)
        assert_twins(activation.gelu(x, added), expected)
        assert torch.equal(wide, before)
        tiles = x.reshape(1, case.rows, case.width).clone()
        out = activation.gelu(tiles, added, may_overwrite=True)
        assert_twins(out[0], expected)
        assert out.data_ptr() == tiles.data_ptr()
    if dtype != torch.float32:
        compare_with_exact_gelu(device, dtype)


def compare_with_exact_gelu(device: str, dtype: torch.dtype) -> None:
    """From where nothing is left of the tail to where x is its own GELU, and what is no number."""
    huge = torch.tensor([-6e4, -1e3, -100.0, 100.0, 1e3, 6e4])
    x = torch.cat((torch.linspace(-12, 12, 2042), huge)).to(device, dtype)[None]
    wide = x.double()
    exact = wide * torch.special.ndtr(wide)
    half_step = torch.finfo(dtype).eps / 2
    allowed = 4e-6 + 2 * torch.finfo(torch.float32).eps * wide.abs() + half_step * exact.abs() + 2**-25
    assert ((activation.gelu(x).double() - exact).abs() <= allowed).all()
    odd = activation.gelu(torch.tensor([[torch.nan, torch.inf]], device=device, dtype=dtype))[0]
    assert odd[0].isnan()
    assert odd[1] == torch.inf


@needs_triton
def test_interpreted_activations_equal_their_twins(repository: Path) -> None:
    assert run_interpreted("tests.kernels.test_activation", repository) == [str(case) for case in INTERPRETED]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_activations_equal_their_twins(case: Case) -> None:
    compare(case, "cuda")


def test_gelu_adds_its_bias_in_fp32_and_rounds_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(50, 64, generator=generator).bfloat16(), torch.randn(64, generator=generator).bfloat16()
    out = kernels.gelu(x, bias)
    assert torch.equal(out, F.gelu(x.float() + bias.float()).bfloat16())
    assert not torch.equal(out, F.gelu(x + bias))


def test_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-6, 6, 1000, dtype=torch.float64)
    exact = x * (1 + torch.erf(x / 2**0.5)) / 2
    torch.testing.assert_close(kernels.gelu(x), exact)
    assert (F.gelu(x, approximate="tanh") - exact).abs().max() > 1e-4


def test_the_polynomial_is_the_normal_distribution_in_fp32() -> None:
    x = torch.linspace(-activation.PHI_RANGE, activation.PHI_RANGE, 100_001)
    t, p = x * x * (2 / activation.PHI_RANGE**2) - 1, torch.zeros_like(x)
    for coefficient in activation.fit_phi():
        p = p * t + coefficient
    assert (x * (0.5 + x * p) - x * torch.special.ndtr(x.double())).abs().max() < 4e-6


def test_shapes_that_the_kernels_cannot_take_are_declined_by_name() -> None:
    assert "7 columns" in (activation.decline_halves(torch.zeros(1, 7)) or "")
    assert "(3,)" in (activation.decline_bias(torch.zeros(1, 4), torch.zeros(3)) or "")


def test_training_takes_gradients_through_the_public_operations() -> None:
    x, bias = torch.randn(3, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    (kernels.gelu(x, bias, may_overwrite=True).sum() + kernels.silu_and_multiply(x).sum()).backward()
    assert x.grad is not None
    assert bias.grad is not None


if __name__ == "__main__":
    compare_interpreted(INTERPRETED, compare)
