import hashlib

import pytest

from tests.messages import mentions
from tilewise.errors import InputError
from tilewise.inputs.media import tiling
from tilewise.types import TilingParameters

MAX_TILES = 64
ALL_RANGES = [(least, most) for least in range(1, MAX_TILES + 1) for most in range(least, MAX_TILES + 1)]
# Over the candidates of all ranges, one line each: the same on every Python, whatever its own sets do.
DIGEST = "b2b2cc7ab4082f2e508b76b78bcf17f277cbe131423541a96ae063a85f3beb42"


def fill_as_the_reference(min_tiles: int, max_tiles: int) -> set[tuple[int, int]]:
    """The reference's set, filled in its order; pairs that it would meet and leave out are not met here."""
    return {
        (i, j)
        for n in range(min_tiles, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, min(n, max_tiles // i) + 1)
        if i * j >= min_tiles
    }


def test_the_shorter_loops_fill_the_references_own_set():
    for min_tiles, max_tiles in ((1, 1), (1, 12), (2, 6), (5, 20), (12, 12), (40, 64)):
        literal = {
            (i, j)
            for n in range(min_tiles, max_tiles + 1)
            for i in range(1, n + 1)
            for j in range(1, n + 1)
            if i * j <= max_tiles and i * j >= min_tiles
        }
        assert list(fill_as_the_reference(min_tiles, max_tiles)) == list(literal)


def test_candidates_of_every_range_come_in_the_order_of_cpythons_own_set():
    for bounds in ALL_RANGES:
        by_area = sorted(fill_as_the_reference(*bounds), key=lambda grid: grid[0] * grid[1])
        assert list(tiling.candidate_grids(*bounds)) == by_area, bounds


def test_candidates_are_the_same_on_every_python():
    lines = (" ".join(f"{i}x{j}" for i, j in tiling.candidate_grids(*bounds)) for bounds in ALL_RANGES)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST


def test_a_tie_goes_to_the_later_grid_only_where_the_picture_fills_half_of_it():
    two_tiles = TilingParameters(min_tiles=2, max_tiles=2)
    first, last = tiling.candidate_grids(2, 2)
    half = 448 * 448  # pixels of half of two tiles
    assert abs(1.25 - first[0] / first[1]) == abs(1.25 - last[0] / last[1])
    assert 500 * 400 <= half < 600 * 480
    assert tiling.choose_grid(500, 400, two_tiles) == first
    assert tiling.choose_grid(600, 480, two_tiles) == last


def test_a_1x1_grid_has_no_thumbnail_and_any_other_has_where_wanted():
    assert tiling.count_tiles(448, 448, TilingParameters()) == 1
    assert tiling.count_tiles(600, 400, TilingParameters(use_thumbnail=False)) == 6
    assert tiling.count_tiles(600, 400, TilingParameters()) == 7


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (447, 447), (449, 449), (1, 10**9), (10**9, 1)])
def test_any_size_of_at_least_one_pixel_has_a_grid(size):
    columns, rows = tiling.choose_grid(*size, TilingParameters())
    assert 1 <= columns * rows <= 12


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_side_below_one_is_refused(size):
    with pytest.raises(InputError, match=mentions(f"{size[0]}x{size[1]}", 1)):
        tiling.choose_grid(*size, TilingParameters())
