"""Pillow as the oracle of the pixel path: two single-axis resizes, so that the order of passes is ours."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)


def make_picture(width: int, height: int, seed: int) -> Tensor:
    """Half noise, half hard edges: both clip in a bicubic resize. (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    edges = np.where(random.random((height, width, 1)) < 0.5, 0, 255).astype(np.uint8)
    return torch.from_numpy(np.where(np.arange(width)[None, :, None] % 64 < 32, noise, edges))


def resize(image: Tensor, width: int, height: int) -> Tensor:
    """QUIRK: in one call Pillow 13 runs the vertical pass first where the width grows and the height shrinks."""
    picture = Image.fromarray(image.numpy())
    picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture))


def cut(image: Tensor, columns: int, rows: int, has_thumbnail: bool, size: int) -> Tensor:
    canvas = Image.fromarray(resize(image, columns * size, rows * size).numpy())
    boxes = [
        (column * size, row * size, (column + 1) * size, (row + 1) * size)
        for row in range(rows)
        for column in range(columns)
    ]
    tiles = [torch.from_numpy(np.array(canvas.crop(box))) for box in boxes]
    return torch.stack([*tiles, resize(image, size, size)] if has_thumbnail else tiles)


def normalize(tiles: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) fp32."""
    normalized = (tiles.numpy().astype(np.float32) / np.float32(255) - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)))
