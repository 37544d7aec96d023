"""Norms in Triton, alone and behind a residual add: one program a row, which it reads once and keeps in registers.

A layer norm is here behind an add alone: where it stands by itself torch's own takes one launch, too.

A width need not be a power of two: the lanes beyond it load and store nothing. Rounding follows the twins step by
step, so that in half precision nearly all values are theirs to the bit.

Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4; Ba et al. 2016, "Layer Normalization",
eq. 4.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilewise.kernels.triton.launch import await_inputs, depend

MAX_WIDTH = 16384  # 32 values a lane at 16 warps; wider rows would spill


def decline_row(x: Tensor, *vectors: Tensor) -> str | None:
    """Say why rows of `x` with these weights and scales do not fit the kernels, or None if they do."""
    width = x.shape[-1]
    if width > MAX_WIDTH:
        return f"a row of {width} is wider than one program holds, {MAX_WIDTH}"
    if any(vector.shape != (width,) for vector in vectors):
        return f"weights are {[tuple(vector.shape) for vector in vectors]} and not all ({width},)"
    return None


def decline_packed(qkv: Tensor, q_weight: Tensor, k_weight: Tensor) -> str | None:
    """Say why a packed projection cannot be normalised in place, or None if it can."""
    if not qkv.is_contiguous():
        return "the packed projection is not contiguous"
    return decline_row(qkv[..., : qkv.shape[-1] // 3], q_weight, k_weight)


@cache
def kernels() -> tuple[Any, Any]:
    """Return the kernels of a norm and of a sum with its norm, compiled at their first launches."""
    import triton
    import triton.language as tl

    wait = await_inputs()

    @triton.jit
    def normalize(
        x_ptr, weight_ptr, next_weight_ptr, out_ptr, x_stride, out_stride, eps,
        WIDTH: tl.constexpr, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
    ):  # fmt: skip
        if IS_DEPENDENT:
            wait()
        # Grid (rows, parts): part 1 are the WIDTH columns behind part 0, with a weight of their own.
        row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        column = tl.arange(0, BLOCK)
        valid = column < WIDTH
        x = tl.load(x_ptr + row * x_stride + part * WIDTH + column, mask=valid, other=0.0)
        # Before the sum, so that both loads are in flight together.
        if part == 0:
            weight = tl.load(weight_ptr + column, mask=valid, other=0.0)
        else:
            weight = tl.load(next_weight_ptr + column, mask=valid, other=0.0)
        wide = x.to(tl.float32)
        normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
        out = normed.to(x.dtype).to(tl.float32) * weight.to(tl.float32)
        tl.store(out_ptr + row * out_stride + part * WIDTH + column, out.to(x.dtype), mask=valid)

    @triton.jit
    def add_and_normalize(
        residual_ptr, x_ptr, scale_ptr, weight_ptr, bias_ptr, sum_ptr, normed_ptr, residual_stride, x_stride, eps,
        HAS_SCALE: tl.constexpr, IS_CENTERED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
        IS_DEPENDENT: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        valid = column < WIDTH
        if IS_DEPENDENT:
            wait()
        residual = tl.load(residual_ptr + row * residual_stride + column, mask=valid, other=0.0)
        x = tl.load(x_ptr + row * x_stride + column, mask=valid, other=0.0)
        weight = tl.load(weight_ptr + column, mask=valid, other=0.0).to(tl.float32)
        branch = x.to(tl.float32)
        if HAS_SCALE:
            scale = tl.load(scale_ptr + column, mask=valid, other=0.0).to(tl.float32)
            branch = (branch * scale).to(x.dtype).to(tl.float32)
        total = (residual.to(tl.float32) + branch).to(x.dtype)
        tl.store(sum_ptr + row * WIDTH + column, total, mask=valid)
        wide = total.to(tl.float32)
        if IS_CENTERED:  # a layer norm, which rounds once
            wide = tl.where(valid, wide - tl.sum(wide, 0) / WIDTH, 0.0)
            bias = tl.load(bias_ptr + column, mask=valid, other=0.0).to(tl.float32)
            out = wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps) * weight + bias
        else:
            normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
            out = normed.to(x.dtype).to(tl.float32) * weight
        tl.store(normed_ptr + row * WIDTH + column, out.to(x.dtype), mask=valid)

    return normalize, add_and_normalize


def _options(rows: Tensor, width: int) -> dict[str, int]:
    block = 1 << (width - 1).bit_length()
    num_warps = min(16, max(1, block // 512))
    return {"WIDTH": width, "BLOCK": block, "num_warps": num_warps, **depend(rows.device, len(rows))}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; the last axis is dense.

    Numerics: fp32 inside, then as the twin rounds; within 1e-5 of it in fp32, and elsewhere one rounding step of
    the half type in at most one value of a hundred.
    """
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normalize, _ = kernels()
    normalize[(len(rows), 1)](rows, weight, weight, out, rows.stride(0), width, eps, **_options(rows, width))
    return out


def rms_norm_queries_and_keys_(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> None:
    """See `reference.rms_norm_queries_and_keys_`; numerics as `rms_norm`."""
    packed = qkv.shape[-1]
    rows = qkv.view(-1, packed)
    normalize, _ = kernels()
    normalize[(len(rows), 2)](rows, q_weight, k_weight, rows, packed, packed, eps, **_options(rows, packed // 3))


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; the sum is equal to the bit in half precision, the norm as in `rms_norm`."""
    return _add_norm(residual, x, weight, None, eps, scale)


def add_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.add_layer_norm`; the sum is equal to the bit in half precision.

    Numerics: fp32 inside, rounded once; as far from the twin as `rms_norm`.
    """
    return _add_norm(residual, x, weight, bias, eps, scale)


def _add_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    residuals, rows = residual.reshape(-1, width), x.reshape(-1, width)
    total, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _, add_and_normalize = kernels()
    add_and_normalize[(len(rows),)](
        residuals, rows, weight if scale is None else scale, weight, weight if bias is None else bias, total, normed,
        residuals.stride(0), rows.stride(0), eps, HAS_SCALE=scale is not None, IS_CENTERED=bias is not None,
        **_options(rows, width),
        enable_fp_fusion=False,  # or product and sum become one operation in half precision, rounded once
    )  # fmt: skip
    return normed, total
