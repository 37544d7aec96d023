"""Pillow's 8-bit bicubic resize as integer tensor arithmetic, on any device, without one differing pixel.

Pillow computes coefficients in double precision, normalises them, rounds them to 22 fractional bits, and
then works in 32-bit integers: a horizontal pass, then a vertical one, each rounding and clipping to 8 bits;
a pass whose side does not change is skipped. Source: Pillow, src/libImaging/Resample.c (behaviour, not code).

On a GPU a pass is one Triton kernel, and the second one writes tiles where they belong. The plain twins are loops over
taps of torch operations, dozens of launches a picture.

QUIRK: Pillow 13 runs the vertical pass first where the width grows and the height shrinks. The order here is
that of Pillow up to 12, which the reference model's preprocessing was written against; each pass alone is the
same in both.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilewise.kernels.transfer import upload
from tilewise.kernels.triton.launch import has_triton

_FRACTION_BITS = 22
_BICUBIC_SUPPORT = 2.0
_BICUBIC_A = -0.5
_MAX_ELEMENTS_AT_ONCE = 1 << 24  # bounds the int32 scratch of a plain pass: four times this, a few times over
_BLOCK = 512
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((_BICUBIC_A + 2.0) * x - (_BICUBIC_A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _BICUBIC_A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@lru_cache(maxsize=256)
def _coefficients(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return first source index (target,) and integer weights (target, taps) of every output pixel."""
    scale = source / target
    stretch = max(scale, 1.0)  # antialias: the kernel grows when the picture shrinks
    support = _BICUBIC_SUPPORT * stretch
    taps = int(np.ceil(support)) * 2 + 1
    center = (np.arange(target) + 0.5) * scale
    # C casts truncate towards zero; negative values are clipped to zero anyway.
    first = np.maximum(np.trunc(center - support + 0.5).astype(np.int64), 0)
    last = np.minimum(np.trunc(center + support + 0.5).astype(np.int64), source)
    index = np.arange(taps)
    inside = index[None] < (last - first)[:, None]
    weights = _bicubic((index[None] + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(inside, weights, 0.0)
    total = np.zeros(target)
    for tap in range(taps):  # summed in Pillow's order: doubles do not associate
        total = total + weights[:, tap]
    weights = weights / np.where(total == 0.0, 1.0, total)[:, None]
    fixed = np.trunc(weights * (1 << _FRACTION_BITS) + np.where(weights < 0, -0.5, 0.5))
    return first, fixed.astype(np.int32)


@cache
def _kernels() -> tuple[Any, Any]:
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
def _load_table(source: int, target: int, device: torch.device) -> Tensor:
    """Return first indices and then the weights tap by tap, (1 + taps, target) int32: neighbours read neighbours.

    NOTE: uploaded in stream order, so all passes of a device run on one stream.
    """
    first, weights = _coefficients(source, target)
    return upload(np.concatenate((first[None].astype(np.int32), weights.T)), device)


def _launch_pass(image: Tensor, out: Tensor, axis: int, target: int) -> None:
    """Resize one axis of (H, W, 3) into a grid of tiles (N, height, width, 3), all of the same size."""
    shape = list(image.shape)
    shape[axis] = target
    table = _load_table(image.shape[axis], target, image.device)
    row_size, tile_row_size = 3 * shape[1], 3 * out.shape[2]
    resample, _ = _kernels()
    resample[(shape[0], -(-row_size // _BLOCK))](
        image, table, out, image.shape[axis], target, len(table) - 1, row_size, out.shape[1], tile_row_size,
        IS_HORIZONTAL=axis == 1, BITS=_FRACTION_BITS, HALF=1 << (_FRACTION_BITS - 1), BLOCK=_BLOCK,
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


def _resample_axis(image: Tensor, target: int, axis: int) -> Tensor:
    """Resize one axis of a uint8 tensor (H, W, 3), in bands along the other."""
    other = 1 - axis
    band = max(1, _MAX_ELEMENTS_AT_ONCE // (3 * target))
    bands = [_resample_band(part, target, axis) for part in image.split(band, other)]
    return bands[0] if len(bands) == 1 else torch.cat(bands, other)


def _resample_band(image: Tensor, target: int, axis: int) -> Tensor:
    """Resize one axis; the 32-bit sums cannot overflow since the weights sum to 1."""
    source = image.shape[axis]
    first, weights = _coefficients(source, target)
    start, weight = upload(first, image.device), upload(weights, image.device)
    shape = [1] * image.dim()
    shape[axis] = target
    total = torch.full([], 1 << (_FRACTION_BITS - 1), dtype=torch.int32, device=image.device)
    for tap in range(weights.shape[1]):
        index = (start + tap).clamp(max=source - 1)
        total = total + image.index_select(axis, index).int() * weight[:, tap].view(shape)
    return (total >> _FRACTION_BITS).clamp(0, 255).to(torch.uint8)


def resize_plainly(image: Tensor, width: int, height: int) -> Tensor:
    """The plain twin of `resize_bicubic`."""
    if image.shape[1] != width:
        image = _resample_axis(image, width, 1)
    if image.shape[0] != height:
        image = _resample_axis(image, height, 0)
    return image


def resize_bicubic(image: Tensor, width: int, height: int) -> Tensor:
    """Resize like `PIL.Image.resize((width, height), BICUBIC)`; an unchanged size gives the picture itself.

    Shapes: image: (H, W, 3) uint8 -> (height, width, 3) uint8
    Numerics: bit-exact with Pillow's passes, horizontal first.
    """
    if image.shape[:2] == (height, width) or decline(image):
        return resize_plainly(image, width, height)
    out = image.new_empty(1, height, width, 3)
    resize_into_tiles(image, out, width, height)
    return out[0]


def cut_plainly(image: Tensor, columns: int, rows: int, has_thumbnail: bool, tile_size: int) -> Tensor:
    """The plain twin of `cut_tiles`."""
    canvas = resize_plainly(image, columns * tile_size, rows * tile_size)
    grid = canvas.view(rows, tile_size, columns, tile_size, 3).transpose(1, 2)
    tiles = grid.reshape(rows * columns, tile_size, tile_size, 3)
    if not has_thumbnail:
        return tiles
    return torch.cat((tiles, resize_plainly(image, tile_size, tile_size)[None]))


def cut_in_place(image: Tensor, columns: int, rows: int, has_thumbnail: bool, tile_size: int) -> Tensor:
    """`cut_tiles` in Triton: every tile is written where it stays."""
    num_tiles = columns * rows
    tiles = image.new_empty(num_tiles + has_thumbnail, tile_size, tile_size, 3)
    resize_into_tiles(image, tiles[:num_tiles], columns * tile_size, rows * tile_size)
    if has_thumbnail:
        resize_into_tiles(image, tiles[num_tiles:], tile_size, tile_size)
    return tiles


def cut_tiles(image: Tensor, columns: int, rows: int, has_thumbnail: bool, tile_size: int) -> Tensor:
    """Resize to the grid and cut it row by row; the thumbnail, made from the source, comes last.

    Shapes: image: (H, W, 3) uint8 -> (N, tile_size, tile_size, 3) uint8
    Numerics: as `resize_bicubic`.
    """
    cut = cut_plainly if decline(image) else cut_in_place
    return cut(image, columns, rows, has_thumbnail, tile_size)


def normalize_plainly(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """The plain twin of `normalize_tiles`."""
    channels = zip(tiles.unbind(-1), _MEAN, _STD, strict=True)
    return torch.stack([(channel.float() / 255.0 - mean) / std for channel, mean, std in channels], 1).to(dtype)


def normalize_in_one_pass(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """`normalize_tiles` in Triton: one read, one write."""
    num_tiles, height, width, _ = tiles.shape
    out = tiles.new_empty((num_tiles, 3, height, width), dtype=dtype)
    _, normalize = _kernels()
    normalize[(num_tiles, -(-height * width // _BLOCK))](
        tiles, out, MEAN=_MEAN, STD=_STD, PIXELS=height * width, BLOCK=_BLOCK
    )
    return out


def normalize_tiles(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale to [0, 1] and standardise with ImageNet's mean and deviation.

    Nothing is uploaded, so a graph may capture it; in Triton one that has run before.

    Shapes: tiles: (N, S, S, 3) uint8 -> (N, 3, S, S) dtype
    Numerics: fp32 until the last cast. fp16 arithmetic here is known to cost answers. In Triton every quotient is
        rounded to nearest, as on the CPU; torch on a GPU multiplies by reciprocals.
    """
    normalize = normalize_plainly if decline(tiles) else normalize_in_one_pass
    return normalize(tiles, dtype)
