"""A few rows times a large weight in Triton: what a decode step spends its time on is reading weights once.

Each program owns some rows of the weight and a share of K, streams them once, and multiplies them with all rows of x,
padded to 16, 32 or 64 for the matrix units. Where the weight is too narrow to keep the device busy, K is
split, and the program that arrives last for its rows adds the fp32 shares in their order, so that the same inputs give
the same bits. A gated product owns rows of gate and the same ones of up by turns, and stores what SwiGLU makes of them.
The grid follows from shapes alone and nothing waits for the host, so that graphs capture it.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilewise.kernels.optimisations import Optimisation, is_left_out
from tilewise.kernels.triton.arrivals import create_arrivals
from tilewise.kernels.triton.launch import await_inputs, depend, has_triton
from tilewise.kernels.triton.product_config import (
    K_MULTIPLE,
    LEAST_SHARED_KIB,
    MAX_ROWS,
    ProductConfig,
    choose_config,
    pad_rows,
)

# 1 MB: the narrowest decoder, 896 wide, has weights of 1.6 MB. A captured step launches a kernel for each either way;
# ours is always one, adds the bias, and starts in the end of the kernel before it (computed, not measured).
_MIN_WEIGHT_ELEMENTS = 1 << 19
_MAX_SPLIT_TILES = 4096  # of weight rows: what is cut into more keeps the device busy as it is
# Largest shared memory of a block, KiB, by compute capability: CUDA C++ programming guide, "technical specifications".
_SHARED_KIB = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}


def choose_config_here(x: Tensor, weight: Tensor, is_gated: bool = False) -> ProductConfig:
    """Choose a config for these tensors on their own device."""
    (n, k), (_, num_sms, shared_bytes) = weight.shape, measure_device(x.device)
    return choose_config(x.numel() // k, n, k, num_sms, shared_bytes, is_gated)


def decline_gated(x: Tensor, weight: Tensor) -> str | None:
    """Say why gate, up and SwiGLU cannot be one launch for these tensors, or None if they can and are worth it."""
    reason = decline(x, weight)
    if reason is None and weight.shape[0] % 2:
        return f"{weight.shape[0]} rows are no two halves"
    return reason


def decline(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why the Triton kernel cannot serve these tensors, or None if it can and is worth it."""
    if is_left_out(Optimisation.SKINNY_PRODUCTS):
        return "skinny products are left out"
    if x.device.type != "cuda" or torch.version.cuda is None:
        return "not a CUDA device"
    if x.device.index != torch.cuda.current_device():
        return f"{x.device} is not the current device"
    capability = measure_device(x.device)[0]
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"{x.dtype} is neither bfloat16 nor float16"
    if weight.numel() < _MIN_WEIGHT_ELEMENTS:
        return f"a weight of {weight.numel()} elements is read faster than a kernel is launched"
    return _decline_tensors(x, weight, bias)


def _decline_tensors(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    """Say why the kernel cannot serve these tensors, wherever they are, or None if it can."""
    given = [x, weight] if bias is None else [x, weight, bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "gradients are needed"
    if any(tensor.dtype != x.dtype or tensor.device != x.device for tensor in given):
        return "inputs differ in dtype or device"
    if weight.dim() != 2 or x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        return "shapes do not fit each other"
    k = weight.shape[1]
    if k == 0 or k % K_MULTIPLE:
        return f"K={k} is no multiple of {K_MULTIPLE}"
    if not 0 < x.numel() // k <= MAX_ROWS:
        return f"{x.numel() // k} rows are not 1 to {MAX_ROWS}"
    if not weight.is_contiguous() or (bias is not None and not bias.is_contiguous()):
        return "the weight or bias is not contiguous"
    return None if has_triton() else "triton is not installed"


@cache
def measure_device(device: torch.device) -> tuple[tuple[int, int], int, int]:
    """Return compute capability, multiprocessors, and the shared memory of a block in bytes."""
    found = torch.cuda.get_device_properties(device)
    capability = (found.major, found.minor)
    return capability, found.multi_processor_count, _SHARED_KIB.get(capability, LEAST_SHARED_KIB) << 10


@cache
def kernel() -> Any:
    """Return the kernel, compiled for each new kind of arguments at its first launch."""
    import triton
    import triton.language as tl

    wait = await_inputs()

    # num_rows is not specialised: 1 and multiples of 16 would be compiled again, in the middle of serving.
    @triton.jit(do_not_specialize=["num_rows"])
    def multiply_share(
        x_ptr, weight_ptr, bias_ptr, out_ptr, shares_ptr, arrivals_ptr, num_rows, n, k,
        HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr, IS_SPLIT: tl.constexpr, WEIGHT_FIRST: tl.constexpr,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_DEPENDENT: tl.constexpr,
    ):  # fmt: skip
        split, num_splits = tl.program_id(1), tl.num_programs(1)
        row, inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
        owned = tl.arange(0, BLOCK_N)
        num_blocks = k // BLOCK_K
        share = tl.cdiv(num_blocks, num_splits)
        first = split * share
        last = tl.minimum(first + share, num_blocks)
        is_row = row < num_rows
        x_tile = x_ptr + row[:, None] * k + inner[None]  # (BLOCK_M, BLOCK_K)
        # Clamped, not masked: the last row is read again and not stored, and no load waits for a comparison.
        if IS_GATED:  # n is up's height, and up lies below gate: a row of each by turns, so that one split parts them
            column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            pair = tl.minimum(tl.program_id(0) * (BLOCK_N // 2) + owned // 2, n - 1)
            weight_row = (pair + owned % 2 * n).to(tl.int64)
        else:
            column = tl.program_id(0) * BLOCK_N + owned
            weight_row = tl.minimum(column, n - 1).to(tl.int64)
        weight_tile = weight_ptr + weight_row[:, None] * k + inner[None]  # (BLOCK_N, BLOCK_K)
        if WEIGHT_FIRST:
            out = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        else:
            out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if IS_DEPENDENT:
            wait()
        for block in range(first, last):
            # NOTE: Triton 3.6 drops the policy where it makes the load asynchronous, as it does here; 3.9 keeps it.
            weight = tl.load(weight_tile + block * BLOCK_K, eviction_policy="evict_first")
            x = tl.load(x_tile + block * BLOCK_K, mask=is_row[:, None], other=0.0)
            if WEIGHT_FIRST:
                out = tl.dot(weight, tl.trans(x), out, input_precision="ieee")
            else:
                out = tl.dot(x, tl.trans(weight), out, input_precision="ieee")
        if WEIGHT_FIRST:
            out = tl.trans(out)
        if IS_SPLIT:
            size = BLOCK_M * BLOCK_N
            place = shares_ptr + tl.program_id(0).to(tl.int64) * num_splits * size
            place += row[:, None] * BLOCK_N + owned[None]
            tl.store(place + split * size, out, mask=is_row[:, None])
            # NOTE: one thread counts for all: the others' stores come before it through this barrier alone.
            tl.debug_barrier()
            if tl.atomic_add(arrivals_ptr + tl.program_id(0), 1, sem="acq_rel", scope="gpu") < num_splits - 1:
                return
            tl.store(arrivals_ptr + tl.program_id(0), 0)  # for the next launch
            out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for number in range(num_splits):  # other multiprocessors wrote these: from L2
                out += tl.load(place + number * size, mask=is_row[:, None], other=0.0, cache_modifier=".cg")
        is_column = column < n
        if HAS_BIAS:
            out += tl.load(bias_ptr + column, mask=is_column, other=0.0).to(tl.float32)[None]
        if IS_GATED:  # rounded where the two launches that this one replaces round
            gate, up = tl.split(tl.reshape(out.to(out_ptr.dtype.element_ty), [BLOCK_M, BLOCK_N // 2, 2]))
            wide = gate.to(tl.float32)
            out = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
        offset = row.to(tl.int64)[:, None] * n + column[None]
        tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None])

    return multiply_share


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, config: ProductConfig) -> Tensor:
    """Multiply by our kernel, cut as `config` says; the twin is `F.linear`.

    Shapes: x: (..., K), 1 to 64 rows in all · weight: (N, K) · bias: (N,) or None -> (..., N)
    Numerics: fp32 until one rounding at the end. Relative to the largest output within 4e-3 of the product in fp32
        for bf16, 1e-3 for fp16, 1e-5 for fp32; the same inputs and config give the same bits.
    """
    return _multiply(x, weight, bias, config, is_gated=False)


def multiply_gated(x: Tensor, weight: Tensor, config: ProductConfig) -> Tensor:
    """Multiply by gate and up and apply SwiGLU in one launch; the twin is `F.linear`, then `silu_and_multiply`.

    Shapes: x: (..., K), 1 to 64 rows in all · weight: (2I, K), gate's rows, then up's -> (..., I)
    Numerics: rounded as the twin is, after the product, after SiLU, and at the end; up to the order of the sums in K
        equal to it, and bit for bit to `multiply` with the same config, then `activation.silu_and_multiply`.
    """
    return _multiply(x, weight, None, config, is_gated=True)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, config: ProductConfig, is_gated: bool) -> Tensor:
    n, k = weight.shape
    block_n, num_splits = config.block_n, config.num_splits
    if is_gated:
        n, block_n = n // 2, block_n // 2
    x = x.contiguous()
    num_rows, num_tiles = x.numel() // k, -(-n // block_n)
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    shares = arrivals = None
    if num_splits > 1:
        assert num_tiles <= _MAX_SPLIT_TILES, "so many programs need no more"
        shape = (num_tiles, num_splits, pad_rows(num_rows), config.block_n)
        shares = torch.empty(shape, dtype=torch.float32, device=x.device)
        arrivals = create_arrivals(x.device, "multiply", _MAX_SPLIT_TILES)
    options = {**launch_options(num_rows, config, bias, is_gated), **depend(x.device, num_rows)}
    kernel()[num_tiles, num_splits](x, weight, bias, out, shares, arrivals, num_rows, n, k, **options)
    return out


def launch_options(num_rows: int, config: ProductConfig, bias: Tensor | None, is_gated: bool = False) -> dict[str, Any]:
    """Return the constants that the kernel is compiled with."""
    return {
        "HAS_BIAS": bias is not None,
        "IS_GATED": is_gated,
        "IS_SPLIT": config.num_splits > 1,
        "WEIGHT_FIRST": config.weight_first,
        "BLOCK_M": pad_rows(num_rows),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
