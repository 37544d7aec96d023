import hashlib

import pytest

from tilewise.inputs.media.tiling import candidate_grids, choose_grid, count_tiles
from tilewise.types import TilingParameters

# (width, height, max_tiles, columns, rows, tiles with thumbnail)
PICTURES = [
    (600, 400, 12, 3, 2, 7),
    (448, 448, 12, 1, 1, 1),
    (224, 224, 12, 1, 1, 1),
    (640, 480, 12, 4, 3, 13),
    (800, 600, 12, 4, 3, 13),
    (1024, 1024, 12, 3, 3, 10),
    (1280, 720, 12, 4, 2, 9),
    (1920, 1080, 12, 4, 2, 9),
    (3840, 2160, 12, 4, 2, 9),
    (1240, 1754, 12, 2, 3, 7),
    (2480, 3508, 12, 2, 3, 7),
    (1000, 100, 12, 10, 1, 11),
    (1920, 1080, 24, 5, 3, 16),
    (1920, 1080, 40, 7, 4, 29),
]

CANDIDATES_1_12 = (
    "1x1 1x2 2x1 3x1 1x3 2x2 4x1 1x4 5x1 1x5 1x6 6x1 3x2 2x3 7x1 1x7 4x2 2x4 1x8 8x1 1x9 3x3 9x1 "
    "2x5 5x2 10x1 1x10 11x1 1x11 12x1 3x4 4x3 1x12 6x2 2x6"
)

# (min_tiles, max_tiles): number of candidates, and the first half of SHA-256 of "1x1 1x2 …"
CANDIDATE_DIGESTS = {
    (1, 6): (14, "6d4f3055773aa8566918ff7e13380904"),
    (1, 24): (84, "b8839ea46650d91e8c8d7b55faf7c270"),
    (1, 40): (158, "49cc95a2642cca43d1caf6dd8740f4bc"),
    (1, 64): (280, "8d1188276f8e3ef4358b35ee726b5587"),
    (7, 40): (144, "74d7f16251243179cd318065cc6b968c"),
}


def written(min_tiles: int, max_tiles: int) -> str:
    return " ".join(f"{columns}x{rows}" for columns, rows in candidate_grids(min_tiles, max_tiles))


@pytest.mark.parametrize(("width", "height", "max_tiles", "columns", "rows", "tiles"), PICTURES)
def test_published_tile_counts_hold(width, height, max_tiles, columns, rows, tiles):
    tiling = TilingParameters(max_tiles=max_tiles)
    assert choose_grid(width, height, tiling) == (columns, rows)
    assert count_tiles(width, height, tiling) == tiles


def test_candidate_order_of_the_default_range_is_frozen():
    assert written(1, 12) == CANDIDATES_1_12


@pytest.mark.parametrize("bounds", CANDIDATE_DIGESTS)
def test_candidate_order_of_other_ranges_is_frozen(bounds):
    text = written(*bounds)
    assert (len(text.split()), hashlib.sha256(text.encode()).hexdigest()[:32]) == CANDIDATE_DIGESTS[bounds]
