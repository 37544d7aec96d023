import pytest

from tilewise.errors import InputError
from tilewise.inputs.media import tiling
from tilewise.types import TilingParameters

RANGES = [(1, n) for n in range(1, 65)] + [(2, 6), (3, 3), (5, 20), (6, 12), (7, 40), (12, 12), (13, 24), (40, 64)]


def reference_order(min_tiles: int, max_tiles: int) -> list[tuple[int, int]]:
    grids = {
        (i, j)
        for n in range(min_tiles, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_tiles <= i * j <= max_tiles
    }
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


@pytest.mark.parametrize(("min_tiles", "max_tiles"), RANGES)
def test_candidates_come_in_the_order_of_the_references_set(min_tiles, max_tiles):
    assert list(tiling._candidate_grids(min_tiles, max_tiles)) == reference_order(min_tiles, max_tiles)


def test_a_tie_goes_to_the_later_grid_only_where_the_picture_fills_half_of_it():
    two_tiles = TilingParameters(min_tiles=2, max_tiles=2)
    first, last = tiling._candidate_grids(2, 2)
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
    with pytest.raises(InputError, match="at least 1 pixel"):
        tiling.choose_grid(*size, TilingParameters())
