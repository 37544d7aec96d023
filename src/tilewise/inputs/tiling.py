"""How a picture is cut into tiles: integers in, integers out.

Owns the choice of the grid, nothing of pixels. The result depends on width, height and `TilingParameters`
alone: not on the hash seed or the order of earlier calls.
"""

from functools import lru_cache

from tilewise.errors import InputError
from tilewise.types import TilingParameters


def choose_grid(width: int, height: int, tiling: TilingParameters) -> tuple[int, int]:
    """Return (columns, rows) of the grid whose aspect is nearest to the picture's.

    Numerics: aspects are compared as float64.
        QUIRK: the reference compares floats, so rounding decides some ties; exact fractions would differ.
    Source: `dynamic_preprocess` of OpenGVLab/InternVL-Chat-V1-5.

    Raises:
        InputError: a side is below 1.
    """
    if width < 1 or height < 1:
        raise InputError(f"A picture's sides must be at least 1 pixel each, got {width}x{height}.")
    aspect = width / height
    half_tile_area = 0.5 * tiling.tile_size * tiling.tile_size
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _candidate_grids(tiling.min_tiles, tiling.max_tiles):
        distance = abs(aspect - columns / rows)
        is_big_enough = width * height > half_tile_area * columns * rows
        if distance < best_distance or (distance == best_distance and is_big_enough):
            best, best_distance = (columns, rows), distance
    return best


def count_tiles(width: int, height: int, tiling: TilingParameters) -> int:
    """Return the number of tiles that the tower sees, the thumbnail included.

    Raises:
        InputError: a side is below 1.
    """
    columns, rows = choose_grid(width, height, tiling)
    return columns * rows + int(has_thumbnail(columns, rows, tiling))


def has_thumbnail(columns: int, rows: int, tiling: TilingParameters) -> bool:
    """Tell whether a thumbnail follows the grid: never after 1x1, which shows the whole picture already."""
    return tiling.use_thumbnail and columns * rows > 1


@lru_cache(maxsize=256)
def _candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) with min <= columns * rows <= max, by area; within an area as the reference has them.

    QUIRK: the reference fills a set of pairs and sorts it by area, so between equal areas, where the order
    decides ties, CPython's hash table order rules. It depends on the pairs and on the order in which they are added
    alone, and is the same in all versions that we run on (3.8 to 3.13); golden tests hold it.
    """
    pairs = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    pairs.sort(key=lambda pair: (max(*pair, min_tiles), *pair))  # the order in which the reference meets them
    return tuple(sorted(set(pairs), key=lambda pair: pair[0] * pair[1]))
