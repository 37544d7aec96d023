"""Pillow's 8-bit bicubic resize as integer tensor arithmetic, on any device, without one differing pixel.

Pillow computes coefficients in double precision, normalises them, rounds them to 22 fractional bits, and
then works in 32-bit integers: a horizontal pass, then a vertical one, each rounding and clipping to 8 bits;
a pass whose side does not change is skipped. Source: Pillow, src/libImaging/Resample.c (behaviour, not code).

These are the plain twins, loops over taps of torch operations; `kernels.triton.resample` has the kernels.

QUIRK: Pillow 13 runs the vertical pass first where the width grows and the height shrinks. The order here is
that of Pillow up to 12, which the reference model's preprocessing was written against; each pass alone is the
same in both.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tilewise.kernels.transfer import upload

FRACTION_BITS = 22
_BICUBIC_SUPPORT = 2.0
_BICUBIC_A = -0.5
_MAX_ELEMENTS_AT_ONCE = 1 << 24  # bounds the int32 scratch of a plain pass: four times this, a few times over
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((_BICUBIC_A + 2.0) * x - (_BICUBIC_A + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _BICUBIC_A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@lru_cache(maxsize=256)
def coefficients(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
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
    fixed = np.trunc(weights * (1 << FRACTION_BITS) + np.where(weights < 0, -0.5, 0.5))
    return first, fixed.astype(np.int32)


def _resample_axis(image: Tensor, target: int, axis: int) -> Tensor:
    """Resize one axis of a uint8 tensor (H, W, 3), in bands along the other."""
    other = 1 - axis
    band = max(1, _MAX_ELEMENTS_AT_ONCE // (3 * target))
    bands = [_resample_band(part, target, axis) for part in image.split(band, other)]
    return bands[0] if len(bands) == 1 else torch.cat(bands, other)


def _resample_band(image: Tensor, target: int, axis: int) -> Tensor:
    """Resize one axis; the 32-bit sums cannot overflow since the weights sum to 1."""
    source = image.shape[axis]
    first, weights = coefficients(source, target)
    start, weight = upload(first, image.device), upload(weights, image.device)
    shape = [1] * image.dim()
    shape[axis] = target
    total = torch.full([], 1 << (FRACTION_BITS - 1), dtype=torch.int32, device=image.device)
    for tap in range(weights.shape[1]):
        index = (start + tap).clamp(max=source - 1)
        total = total + image.index_select(axis, index).int() * weight[:, tap].view(shape)
    return (total >> FRACTION_BITS).clamp(0, 255).to(torch.uint8)


def resize_plainly(image: Tensor, width: int, height: int) -> Tensor:
    """The plain twin of `resize_bicubic`."""
    if image.shape[1] != width:
        image = _resample_axis(image, width, 1)
    if image.shape[0] != height:
        image = _resample_axis(image, height, 0)
    return image


def split_grid(canvas: Tensor, columns: int, rows: int, tile_size: int) -> Tensor:
    """Cut a picture of the grid's size row by row.

    Shapes: canvas: (rows * tile_size, columns * tile_size, 3) -> (rows * columns, tile_size, tile_size, 3)
    """
    grid = canvas.view(rows, tile_size, columns, tile_size, 3).transpose(1, 2)
    return grid.reshape(rows * columns, tile_size, tile_size, 3)


def cut_plainly(image: Tensor, columns: int, rows: int, has_thumbnail: bool, tile_size: int) -> Tensor:
    """The plain twin of `cut_tiles`."""
    canvas = resize_plainly(image, columns * tile_size, rows * tile_size)
    tiles = split_grid(canvas, columns, rows, tile_size)
    if not has_thumbnail:
        return tiles
    return torch.cat((tiles, resize_plainly(image, tile_size, tile_size)[None]))


def normalize_plainly(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """The plain twin of `normalize_tiles`."""
    channels = zip(tiles.unbind(-1), MEAN, STD, strict=True)
    return torch.stack([(channel.float() / 255.0 - mean) / std for channel, mean, std in channels], 1).to(dtype)
