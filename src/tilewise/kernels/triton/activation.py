"""The feed-forward blocks' elementwise halves in Triton: SwiGLU's product, and exact GELU with its bias.

A program holds one piece of one row; everything between its one read and its one write happens in fp32.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024
_VALUES_PER_WARP = 256  # 8 a lane: one load of 16 bytes in half precision
# PERF: GELU over 7,175 x 12,800 takes 132 us with 16 values a lane, 139 to 145 with 8; a copy 130 (H100, 2026-11-28).
_GELU_VALUES_PER_WARP = 512
# PERF: for half precision a polynomial is exact enough, and on an H200 GELU waits for arithmetic: 8,200 x 12,800 take
# 110 us instead of 147, the tower over 8 tiles 161.5 ms instead of 163.6 (2026-11-28).
PHI_RANGE = 5.0
_PHI_DEGREE = 12


@cache
def fit_phi() -> tuple[float, ...]:
    """Fit the normal distribution's Phi, for |x| <= PHI_RANGE, as 0.5 + x * p(t) with t = 2 (x / PHI_RANGE)^2 - 1.

    Returns p's coefficients, highest power first, through Chebyshev's points: x * Phi(x) within 4e-6 in fp32.
    """
    t = np.polynomial.chebyshev.chebpts1(_PHI_DEGREE + 1)
    x = PHI_RANGE * np.sqrt((t + 1) / 2)
    return tuple(np.polyfit(t, [math.erf(value * math.sqrt(0.5)) / (2 * value) for value in x], _PHI_DEGREE).tolist())


@cache
def kernels() -> tuple[Any, Any]:
    """Return SwiGLU's and GELU's kernel, compiled for each new kind of arguments at its first launch."""
    import triton
    import triton.language as tl

    @triton.jit
    def gate_and_multiply(gate_up_ptr, out_ptr, row_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = column < WIDTH
        start = gate_up_ptr + row * row_stride + column
        gate = tl.load(start, mask=valid, other=0.0)
        up = tl.load(start + WIDTH, mask=valid, other=0.0)
        wide = gate.to(tl.float32)
        gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
        tl.store(out_ptr + row * WIDTH + column, (gated * up.to(tl.float32)).to(gate.dtype), mask=valid)

    @triton.jit
    def add_and_gelu(
        x_ptr, bias_ptr, out_ptr, x_stride, out_stride,
        HAS_BIAS: tl.constexpr, PHI: tl.constexpr, PHI_RANGE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = column < WIDTH
        x = tl.load(x_ptr + row * x_stride + column, mask=valid, other=0.0)
        wide = x.to(tl.float32)
        if HAS_BIAS:
            wide += tl.load(bias_ptr + column, mask=valid, other=0.0).to(tl.float32)
        if PHI is None:
            out = 0.5 * wide * (1.0 + tl.erf(wide * 0.7071067811865476))
        else:
            near = tl.minimum(tl.maximum(wide, -PHI_RANGE), PHI_RANGE)
            t = near * near * (2.0 / (PHI_RANGE * PHI_RANGE)) - 1.0
            p = PHI[0]
            for power in tl.static_range(1, len(PHI)):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
                p = p * t + PHI[power]
            # Nothing is left of the tail: a rounding error of Phi times a large x would be more.
            out = wide * tl.where(wide < -PHI_RANGE, 0.0, 0.5 + near * p)
        tl.store(out_ptr + row * out_stride + column, out.to(x.dtype), mask=valid)

    return gate_and_multiply, add_and_gelu


def _launch(
    num_rows: int, width: int, values_per_warp: int = _VALUES_PER_WARP
) -> tuple[tuple[int, int], dict[str, int]]:
    block = min(_BLOCK, 1 << (width - 1).bit_length())
    sizes = {"WIDTH": width, "BLOCK": block, "num_warps": max(1, block // values_per_warp)}
    return (num_rows, -(-width // block)), sizes


def decline_halves(gate_up: Tensor) -> str | None:
    """Say why a row does not fall into two halves, or None if it does."""
    width = gate_up.shape[-1]
    return f"{width} columns are no two halves" if width % 2 else None


def decline_bias(x: Tensor, bias: Tensor | None) -> str | None:
    """Say why the kernel cannot add this bias, or None if it can."""
    if bias is None or bias.shape == x.shape[-1:]:
        return None
    return f"a bias of {tuple(bias.shape)} for rows of {x.shape[-1]}"


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """See `reference.silu_and_multiply`; the last axis is dense.

    Numerics: the gate is rounded before the product, as by the twin; within 1e-5 of it in fp32, and elsewhere one
    rounding step of the half type in at most one value of a hundred.
    """
    width = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * width)
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype, device=gate_up.device)
    grid, sizes = _launch(len(rows), width)
    gate_and_multiply, _ = kernels()
    gate_and_multiply[grid](rows, out, rows.stride(0), **sizes)
    return out


def gelu(x: Tensor, bias: Tensor | None = None, may_overwrite: bool = False) -> Tensor:
    """See `reference.gelu`; the last axis is dense.

    Numerics: fp32 inside, one rounding; as `silu_and_multiply`. In half precision x * Phi(x) is within 4e-6 and two
    rounding steps of fp32 of its value before it is rounded, and 0 below -5.
    """
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    out = rows if may_overwrite else torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    grid, sizes = _launch(len(rows), width, _GELU_VALUES_PER_WARP)
    _, add_and_gelu = kernels()
    add_and_gelu[grid](
        rows, rows if bias is None else bias, out, rows.stride(0), out.stride(0), HAS_BIAS=bias is not None,
        PHI=None if x.dtype == torch.float32 else fit_phi(), PHI_RANGE=PHI_RANGE, **sizes,
    )  # fmt: skip
    return out.view(x.shape)
