from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tilewise.inputs.media.tiling import candidate_grids, choose_grid, count_tiles
from tilewise.types import TilingParameters

SIDES = st.integers(1, 40_000)


@st.composite
def tilings(draw):
    max_tiles = draw(st.integers(1, 64))
    return TilingParameters(draw(st.integers(1, max_tiles)), max_tiles, draw(st.booleans()))


@given(SIDES, SIDES, tilings())
def test_the_grid_keeps_the_bounds_and_no_other_has_a_nearer_aspect(width, height, tiling):
    columns, rows = choose_grid(width, height, tiling)
    assert tiling.min_tiles <= columns * rows <= tiling.max_tiles
    distance = abs(Fraction(width, height) - Fraction(columns, rows))
    nearest = min(
        abs(Fraction(width, height) - Fraction(i, j))
        for i in range(1, tiling.max_tiles + 1)
        for j in range(1, tiling.max_tiles // i + 1)
        if i * j >= tiling.min_tiles
    )
    assert distance - nearest <= Fraction(1, 10**9)


@given(SIDES, SIDES, tilings())
def test_the_count_is_the_grid_and_at_most_one_thumbnail(width, height, tiling):
    columns, rows = choose_grid(width, height, tiling)
    thumbnail = tiling.use_thumbnail and columns * rows > 1
    assert count_tiles(width, height, tiling) == columns * rows + thumbnail


@given(tilings())
def test_candidates_are_every_grid_once_by_area(tiling):
    grids = candidate_grids(tiling.min_tiles, tiling.max_tiles)
    areas = [columns * rows for columns, rows in grids]
    assert areas == sorted(areas)
    assert set(grids) == {
        (i, j) for i in range(1, 65) for j in range(1, 65) if tiling.min_tiles <= i * j <= tiling.max_tiles
    }
    assert len(set(grids)) == len(grids)
