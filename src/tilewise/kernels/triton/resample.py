"""Pillow's 8-bit bicubic resize in Triton: one kernel a pass, the second of which writes tiles where they belong.

Not one pixel differs from the twins in `kernels.resample`, whose coefficients are used here.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilewise.kernels.resample import FRACTION_BITS, MEAN, STD, coefficients
from tilewise.kernels.transfer import upload
from tilewise.kernels.triton.launch import has_triton

_BLOCK = 512


@cache
def kernels() -> tuple[Any, Any]:
    """Return the kernels of one pass of resizing and of normalising, compiled at their first launches."""
    import triton
    import triton.language as tl

    # Sizes are the users': a kernel that were compiled anew for some of them would hold up a step.
    @triton.jit(do_not_specialize=("source", "target", "num_taps", "row_size", "tile_height", "tile_row_size"))
    def resample(
        image_ptr, table_ptr, out_ptr, source, target, num_taps, row_size, tile_height, tile_row_size,
        IS_HORIZONTAL: tl.constexpr, BITS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        # A program makes one piece of one row of the result, and a lane one channel of one pixel of it.
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = column < row_size
        if IS_HORIZONTAL:
            place = tl.minimum(column // 3, target - 1)  # lanes beyond the row read weights, too
            pixel, step = image_ptr + row.to(tl.int64) * source * 3 + column % 3, 3
        else:
            place = row
            pixel, step = image_ptr + column, row_size
        first = tl.load(table_ptr + place)
        total = tl.full([BLOCK], HALF, tl.int32)
        for tap in range(num_taps):
            index = tl.minimum(first + tap, source - 1).to(tl.int64)  # beyond the edge weights are zero
            value = tl.load(pixel + index * step, mask=valid, other=0).to(tl.int32)
            total += value * tl.load(table_ptr + (tap + 1) * target + place)
        out = tl.minimum(tl.maximum(total >> BITS, 0), 255).to(tl.uint8)
        # Tiles stand one behind the other, row by row of the grid.
        tile = (row // tile_height) * (row_size // tile_row_size) + column // tile_row_size
        line = tile.to(tl.int64) * tile_height + row % tile_height
        tl.store(out_ptr + line * tile_row_size + column % tile_row_size, out, mask=valid)

    @triton.jit
    def normalize(
        tiles_ptr, out_ptr, MEAN: tl.constexpr, STD: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        tile = tl.program_id(0).to(tl.int64)
        pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < PIXELS
        start = tile * PIXELS * 3
        for channel in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
            value = tl.load(tiles_ptr + start + pixel * 3 + channel, mask=valid, other=0).to(tl.float32)
            # Triton's own division is off by an ulp or two.
            centred = tl.div_rn(value, tl.full([BLOCK], 255.0, tl.float32)) - MEAN[channel]
            out = tl.div_rn(centred, tl.full([BLOCK], STD[channel], tl.float32))
            tl.store(out_ptr + start + channel * PIXELS + pixel, out.to(out_ptr.dtype.element_ty), mask=valid)

    return resample, normalize


def decline(pixels: Tensor) -> str | None:
    """Say why no Triton kernel takes these pixels, or None if one does."""
    if pixels.dtype != torch.uint8 or pixels.shape[-1] != 3:
        return f"pixels are {pixels.dtype} of {pixels.shape[-1]} channels"
    if not pixels.is_contiguous():
        return "pixels are not contiguous"
    if not pixels.is_cuda:
        return "not a CUDA device"
    return None if has_triton() else "triton is not installed"


@lru_cache(maxsize=128)  # 0.6 MB at most for the largest accepted side, and 20 KB for a common one
def _load_table(source: int, target: int, device: torch.device, stream_id: int) -> Tensor:
    """Return first indices and then the weights tap by tap, (1 + taps, target) int32: neighbours read neighbours.

    `stream_id` is the current stream's: a table is there in that stream's order alone.
    """
    first, weights = coefficients(source, target)
    return upload(np.concatenate((first[None].astype(np.int32), weights.T)), device)


def _launch_pass(image: Tensor, out: Tensor, axis: int, target: int) -> None:
    """Resize one axis of (H, W, 3) into a grid of tiles (N, height, width, 3), all of the same size."""
    shape = list(image.shape)
    shape[axis] = target
    stream_id = torch.cuda.current_stream(image.device).stream_id if image.is_cuda else 0
    table = _load_table(image.shape[axis], target, image.device, stream_id)
    row_size, tile_row_size = 3 * shape[1], 3 * out.shape[2]
    resample, _ = kernels()
    resample[(shape[0], -(-row_size // _BLOCK))](
        image, table, out, image.shape[axis], target, len(table) - 1, row_size, out.shape[1], tile_row_size,
        IS_HORIZONTAL=axis == 1, BITS=FRACTION_BITS, HALF=1 << (FRACTION_BITS - 1), BLOCK=_BLOCK,
    )  # fmt: skip


def resize_into_tiles(image: Tensor, out: Tensor, width: int, height: int) -> None:
    """Resize in Triton and cut into `out` row by row; a side that does not change has weights of 0 and 1.

    Shapes: image: (H, W, 3) uint8 · out: (N, tile height, tile width, 3) uint8, contiguous, a grid of width x height
    Numerics: bit-exact with the twin, `resize_plainly`. The scratch is one uint8 picture (H, width, 3).
    """
    if image.shape[1] != width:
        between = image.new_empty(1, image.shape[0], width, 3)
        _launch_pass(image, between, 1, width)
        image = between[0]
    _launch_pass(image, out, 0, height)


def cut_in_place(image: Tensor, columns: int, rows: int, has_thumbnail: bool, tile_size: int) -> Tensor:
    """`cut_tiles` in Triton: every tile is written where it stays."""
    num_tiles = columns * rows
    tiles = image.new_empty(num_tiles + has_thumbnail, tile_size, tile_size, 3)
    resize_into_tiles(image, tiles[:num_tiles], columns * tile_size, rows * tile_size)
    if has_thumbnail:
        resize_into_tiles(image, tiles[num_tiles:], tile_size, tile_size)
    return tiles


def normalize_in_one_pass(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """`normalize_tiles` in Triton: one read, one write."""
    num_tiles, height, width, _ = tiles.shape
    out = tiles.new_empty((num_tiles, 3, height, width), dtype=dtype)
    _, normalize = kernels()
    normalize[(num_tiles, -(-height * width // _BLOCK))](
        tiles, out, MEAN=MEAN, STD=STD, PIXELS=height * width, BLOCK=_BLOCK
    )
    return out
