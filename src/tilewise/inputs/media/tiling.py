"""How a picture is cut into tiles: integers in, integers out.

Owns the choice of the grid, nothing of pixels. The result depends on width, height and `TilingParameters`
alone: not on the hash seed, the platform or the order of earlier calls.
"""

from functools import lru_cache

from tilewise.errors import InputError
from tilewise.types import TilingParameters

_WORD = (1 << 64) - 1
_XX_PRIME_1, _XX_PRIME_2, _XX_PRIME_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
_LINEAR_PROBES = 9


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
    for columns, rows in candidate_grids(tiling.min_tiles, tiling.max_tiles):
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
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) with min <= columns * rows <= max, by area; within an area as the reference has them.

    QUIRK: the reference fills a set of pairs and sorts it by area, so between equal areas, where the order
    decides ties, CPython's hash table order rules. That table is replayed here instead of relied upon.
    """
    pairs = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    pairs.sort(key=lambda pair: (max(*pair, min_tiles), *pair))  # the order in which the reference meets them
    return tuple(sorted(_set_order(pairs), key=lambda pair: pair[0] * pair[1]))


def _set_order(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Order distinct pairs as iterating a CPython set does after adding them one by one.

    Source: CPython 3.8 to 3.13, Objects/setobject.c: open addressing, ten linear probes before a jump, grown
        fourfold once three fifths full.
    """
    table: list[tuple[int, int] | None] = [None] * 8
    for count, pair in enumerate(pairs, start=1):
        _insert(table, pair)
        if count * 5 >= (len(table) - 1) * 3:
            old = table
            table = [None] * (1 << (count * 4).bit_length())
            for moved in filter(None, old):
                _insert(table, moved)
    return list(filter(None, table))


def _insert(table: list[tuple[int, int] | None], pair: tuple[int, int]) -> None:
    mask = len(table) - 1
    perturb = _tuple_hash(pair)
    slot = perturb & mask
    while True:
        last = slot + _LINEAR_PROBES if slot + _LINEAR_PROBES <= mask else slot
        for place in range(slot, last + 1):
            if table[place] is None:
                table[place] = pair
                return
        perturb >>= 5
        slot = (slot * 5 + 1 + perturb) & mask


def _tuple_hash(pair: tuple[int, int]) -> int:
    """Hash a pair of small positive integers as 64-bit CPython does.

    Source: CPython 3.8 to 3.13, Objects/tupleobject.c, after xxHash (github.com/Cyan4973/xxHash).
    """
    value = _XX_PRIME_5
    for lane in pair:
        value = (value + lane * _XX_PRIME_2) & _WORD
        value = (value << 31 | value >> 33) & _WORD
        value = value * _XX_PRIME_1 & _WORD
    return (value + (2 ^ _XX_PRIME_5 ^ 3527539)) & _WORD
