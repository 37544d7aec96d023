"""The pixel path against Pillow and NumPy: not one differing pixel."""

import random

import pytest
import torch

from tests.kernels import pillow
from tilewise.inputs.tiling import choose_grid
from tilewise.kernels import cut_tiles, normalize_tiles, resize_bicubic
from tilewise.types import TilingParameters

# A single pixel, lines, passes that are skipped, one pixel more or less, growth by the tile's size.
ODD_SIZES = [
    ((1, 1), (448, 448)),
    ((1, 4000), (448, 448)),
    ((4000, 1), (448, 448)),
    ((448, 448), (448, 448)),
    ((448, 300), (448, 448)),
    ((300, 448), (448, 448)),
    ((449, 447), (448, 448)),
    ((447, 449), (448, 448)),
    ((2, 3), (448, 896)),
    ((500, 400), (1, 1)),
    ((3, 2500), (56, 56)),
]


def random_sizes(count: int, largest: int, seed: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Log-uniform, so that small sides are as common as large ones."""
    draw = random.Random(seed)
    sides = [tuple(int(largest ** draw.random()) for _ in range(4)) for _ in range(count)]
    return [((a, b), (c, d)) for a, b, c, d in sides]


@pytest.mark.parametrize(("source", "target"), ODD_SIZES + random_sizes(60, 700, seed=0))
def test_resize_equals_pillow_to_the_pixel(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = pillow.make_picture(*source, seed=source[0])
    assert torch.equal(resize_bicubic(image, *target), pillow.resize(image, *target))


def test_an_unchanged_size_returns_the_picture_itself() -> None:
    image = pillow.make_picture(30, 20, seed=0)
    assert resize_bicubic(image, 30, 20) is image


@pytest.mark.parametrize("size", [(600, 400), (448, 448), (130, 1000), (37, 5), (1, 1), (1, 4000)])
def test_tiles_equal_pillows_crops_and_thumbnail(size: tuple[int, int]) -> None:
    tiling = TilingParameters(tile_size=112)
    columns, rows = choose_grid(*size, tiling)
    layout = (columns, rows, columns * rows > 1, tiling.tile_size)
    image = pillow.make_picture(*size, seed=1)
    assert torch.equal(cut_tiles(image, *layout), pillow.cut(image, *layout))


def test_the_thumbnail_comes_last_and_only_where_asked_for() -> None:
    image = pillow.make_picture(200, 100, seed=2)
    with_thumbnail, without = cut_tiles(image, 2, 1, True, 56), cut_tiles(image, 2, 1, False, 56)
    assert torch.equal(with_thumbnail[:2], without)
    assert torch.equal(with_thumbnail[2], pillow.resize(image, 56, 56))


def test_pixels_are_normalised_in_fp32_and_rounded_once() -> None:
    tiles = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    expected = pillow.normalize(tiles)
    assert torch.equal(normalize_tiles(tiles, torch.float32), expected)
    assert torch.equal(normalize_tiles(tiles, torch.bfloat16), expected.bfloat16())
    half = ((tiles.half() / 255 - torch.tensor(pillow.MEAN).half()) / torch.tensor(pillow.STD).half()).permute(
        0, 3, 1, 2
    )
    assert not torch.equal(normalize_tiles(tiles, torch.float16), half)


@pytest.mark.gpu
def test_two_hundred_pictures_are_cut_on_the_gpu_without_a_differing_pixel() -> None:
    sizes = [size for size, _ in ODD_SIZES] + [size for size, _ in random_sizes(189, 3000, seed=1)]
    tiling = TilingParameters()
    for number, size in enumerate(sizes):
        columns, rows = choose_grid(*size, tiling)
        layout = (columns, rows, columns * rows > 1, tiling.tile_size)
        image = pillow.make_picture(*size, seed=number)
        assert torch.equal(cut_tiles(image.cuda(), *layout).cpu(), pillow.cut(image, *layout)), size


@pytest.mark.gpu
def test_pixels_are_normalised_on_the_gpu_within_one_rounding() -> None:
    tiles = pillow.make_picture(448, 448, seed=0)[None]
    torch.testing.assert_close(
        normalize_tiles(tiles.cuda(), torch.float32).cpu(), pillow.normalize(tiles), rtol=1e-6, atol=1e-6
    )
