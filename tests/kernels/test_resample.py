"""The pixel path against Pillow and NumPy, and Triton's against the plain twins: not one differing pixel."""

import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels import pillow
from tests.kernels.interpreted import compare_interpreted, run_interpreted
from tilewise.inputs.media.tiling import choose_grid
from tilewise.kernels import cut_tiles, normalize_tiles, resample, resize_bicubic
from tilewise.kernels.triton import resample as triton_resample
from tilewise.types import TilingParameters

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

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


@dataclass(frozen=True)
class Case:
    """A picture of `source` (width, height), cut into a grid of `columns` x `rows` tiles."""

    source: tuple[int, int]
    columns: int = 1
    rows: int = 1
    tile_size: int = 14

    def __str__(self) -> str:
        return f"{self.source[0]}x{self.source[1]}-{self.columns}x{self.rows}x{self.tile_size}"


def draw_cases(count: int, largest: int, tile_sizes: tuple[int, ...], seed: int) -> list[Case]:
    draw = random.Random(seed)
    return [
        Case(source, draw.randint(1, 4), draw.randint(1, 3), draw.choice(tile_sizes))
        for source, _ in random_sizes(count, largest, seed)
    ]


INTERPRETED = [
    Case((1, 1)), Case((1, 50), rows=2), Case((400, 1), columns=2), Case((14, 14)), Case((28, 20), 2, 1),
    Case((20, 28), 1, 2), Case((28, 14), 2, 1), Case((15, 13)), Case((2, 3), 1, 2), Case((200, 2), 13, 1),
    Case((9, 7), tile_size=1), Case((30, 20), 3, 2, tile_size=7), *draw_cases(4, 24, (4, 7, 8), seed=4),
]  # fmt: skip
COMPILED = [*INTERPRETED, *draw_cases(200, 1500, (56, 448), seed=3)]


def compare(case: Case, device: str) -> None:
    image = pillow.make_picture(*case.source, seed=0).to(device)
    width, height = case.columns * case.tile_size, case.rows * case.tile_size
    whole = image.new_empty(1, height, width, 3)
    triton_resample.resize_into_tiles(image, whole, width, height)
    assert torch.equal(whole[0], resample.resize_plainly(image, width, height))
    layout = (case.columns, case.rows, case.columns > 1, case.tile_size)
    tiles = triton_resample.cut_in_place(image, *layout)
    assert torch.equal(tiles, resample.cut_plainly(image, *layout))
    for dtype in (torch.float32, torch.float16):
        ours, expected = (
            normalize(tiles, dtype) for normalize in (triton_resample.normalize_in_one_pass, resample.normalize_plainly)
        )
        assert ours.is_contiguous()
        if device == "cpu":
            assert torch.equal(ours, expected)
        else:  # torch multiplies by reciprocals there
            step = torch.finfo(dtype).eps
            torch.testing.assert_close(ours, expected, rtol=2 * step, atol=2 * step)


@needs_triton
def test_interpreted_passes_equal_their_twins_to_the_pixel(repository: Path) -> None:
    assert run_interpreted("tests.kernels.test_resample", repository) == [str(case) for case in INTERPRETED]


@pytest.mark.gpu
@needs_triton
def test_compiled_passes_equal_their_twins_to_the_pixel() -> None:
    for case in COMPILED:
        compare(case, "cuda")


def test_pixels_that_no_kernel_takes_are_declined_by_name() -> None:
    image = pillow.make_picture(6, 4, seed=0)
    assert triton_resample.decline(image) == "not a CUDA device"
    assert triton_resample.decline(image.transpose(0, 1)) == "pixels are not contiguous"
    assert "torch.float32" in (triton_resample.decline(image.float()) or "")
    assert "4 channels" in (triton_resample.decline(torch.zeros(2, 2, 4, dtype=torch.uint8)) or "")


@pytest.mark.parametrize(("source", "target"), ODD_SIZES + random_sizes(60, 700, seed=0))
def test_resize_equals_pillow_to_the_pixel(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = pillow.make_picture(*source, seed=source[0])
    expected = pillow.resize(image, *target)
    assert torch.equal(resize_bicubic(image, *target), expected)
    assert torch.equal(resample.resize_plainly(image, *target), expected)


def test_an_unchanged_size_returns_the_picture_itself() -> None:
    image = pillow.make_picture(30, 20, seed=0)
    assert resize_bicubic(image, 30, 20) is image


@pytest.mark.parametrize("size", [(600, 400), (448, 448), (130, 1000), (37, 5), (1, 1), (1, 4000)])
def test_tiles_equal_pillows_crops_and_thumbnail(size: tuple[int, int]) -> None:
    tiling = TilingParameters(tile_size=112)
    columns, rows = choose_grid(*size, tiling)
    layout = (columns, rows, columns * rows > 1, tiling.tile_size)
    image = pillow.make_picture(*size, seed=1)
    expected = pillow.cut(image, *layout)
    assert torch.equal(cut_tiles(image, *layout), expected)
    assert torch.equal(resample.cut_plainly(image, *layout), expected)


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


def draw_pictures(count: int) -> list[tuple[Tensor, tuple[int, int, bool, int]]]:
    """Pictures of odd and of random sizes, each with the layout that is chosen for it."""
    sizes = [size for size, _ in ODD_SIZES] + [size for size, _ in random_sizes(count - len(ODD_SIZES), 3000, seed=1)]
    tiling = TilingParameters()
    grids = [choose_grid(*size, tiling) for size in sizes]
    return [
        (pillow.make_picture(*size, seed=number), (columns, rows, columns * rows > 1, tiling.tile_size))
        for number, (size, (columns, rows)) in enumerate(zip(sizes, grids, strict=True))
    ]


@pytest.mark.gpu
def test_two_hundred_pictures_are_cut_on_the_gpu_without_a_differing_pixel() -> None:
    for image, layout in draw_pictures(200):
        on_gpu = image.cuda()
        assert triton_resample.decline(on_gpu) in (None, "triton is not installed")
        expected = pillow.cut(image, *layout)
        assert torch.equal(cut_tiles(on_gpu, *layout).cpu(), expected), image.shape
        assert torch.equal(resample.cut_plainly(on_gpu, *layout).cpu(), expected), image.shape


@pytest.mark.gpu
@needs_triton
def test_a_large_picture_takes_the_scratch_of_one_more_picture() -> None:
    image = pillow.make_picture(4000, 3000, seed=0).cuda()
    layout = (4, 3, True, 448)
    cut_tiles(image, *layout)  # its tables are kept
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tiles = cut_tiles(image, *layout)
    assert torch.cuda.max_memory_allocated() - before <= tiles.numel() + 3 * 3000 * 4 * 448 + (4 << 20)
    assert torch.equal(tiles.cpu(), pillow.cut(image.cpu(), *layout))


@pytest.mark.gpu
def test_a_graph_captures_the_normalising_of_whatever_tiles_it_is_replayed_on() -> None:
    tiles = torch.zeros(2, 448, 448, 3, dtype=torch.uint8, device="cuda")
    normalize_tiles(tiles, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = normalize_tiles(tiles, torch.bfloat16)
    tiles.copy_(torch.stack([pillow.make_picture(448, 448, seed=seed) for seed in range(2)]))
    graph.replay()
    assert torch.equal(captured, normalize_tiles(tiles, torch.bfloat16))


@pytest.mark.gpu
def test_pixels_are_normalised_on_the_gpu_within_one_rounding() -> None:
    tiles = pillow.make_picture(448, 448, seed=0)[None]
    torch.testing.assert_close(
        normalize_tiles(tiles.cuda(), torch.float32).cpu(), pillow.normalize(tiles), rtol=1e-6, atol=1e-6
    )


if __name__ == "__main__":
    compare_interpreted(INTERPRETED, compare)
