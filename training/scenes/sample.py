"""What a scene is made of: chance, a canvas of a known number of tiles, questions with their answers.

A sample is a function of its name alone: `held-out/…` and `training/…` share no name, so no scene either. Only
`Random.random` is used, whose sequence Python promises to keep between versions.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

from PIL import Image, ImageDraw
from training.scenes.words import BACKGROUNDS

from tilewise.inputs.media.tiling import choose_grid, count_tiles
from tilewise.types import TilingParameters

T = TypeVar("T")
TILE = 448
LANGUAGES = ("en", "zh")


class Chance:
    """A source of chance that is a function of its name."""

    def __init__(self, name: str) -> None:
        """Seed by `name`."""
        self.random = random.Random(name).random

    def is_true(self, probability: float) -> bool:
        """True with `probability`."""
        return self.random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + int(self.random() * (high - low + 1))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + self.random() * (high - low)

    def pick(self, pool: Sequence[T]) -> T:
        """One of `pool`."""
        return pool[int(self.random() * len(pool))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """A key, as often as its weight says."""
        left = self.random() * sum(weights.values())
        for key, weight in weights.items():
            left -= weight
            if left < 0:
                return key
        return next(key for key, weight in weights.items() if weight)

    def draw(self, pool: Sequence[T], count: int) -> list[T]:
        """`count` different members of `pool`, or all of them in another order."""
        left = list(pool)
        return [left.pop(int(self.random() * len(left))) for _ in range(min(count, len(left)))]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its one right answer; `task` names what is to be seen."""

    task: str
    language: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Canvas:
    """The size of a picture, and the most tiles that it may be cut into."""

    width: int
    height: int
    max_tiles: int = 12

    @property
    def unit(self) -> float:
        """Pixels that are one pixel of the thumbnail, in the direction that is scaled down more."""
        return max(self.width, self.height) / TILE

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of the tiles."""
        return choose_grid(self.width, self.height, TilingParameters(max_tiles=self.max_tiles))

    @property
    def num_tiles(self) -> int:
        """Tiles with the thumbnail."""
        return count_tiles(self.width, self.height, TilingParameters(max_tiles=self.max_tiles))

    def box(self, corners: Sequence[float]) -> str:
        """Corners in pixels as the answer's coordinates, 0 to 1000 of each side."""
        sides = (self.width, self.height) * 2
        whole = [min(1000, max(0, round(1000 * x / side))) for x, side in zip(corners, sides, strict=True)]
        return "[" + ", ".join(map(str, whole)) + "]"


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture; `max_tiles` as in `Canvas`."""

    image: Image.Image
    max_tiles: int = 12


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures with turns about them. Each turn can be asked first."""

    name: str
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]


class Scene(Protocol):
    """A drawn scene, that knows what can be asked about it."""

    pictures: tuple[Picture, ...]
    tasks: Mapping[str, float]

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """A question of `task`, or nothing where this scene has no unambiguous one."""
        ...


# Sides of pictures, and their most tiles, by the number of tiles. A grid's shape is about its picture's: a circle
# stays one. Sides vary by a few percent.
_SIZES: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: (*[(448, 448, 12)] * 6, (400, 400, 12), (600, 600, 12), (300, 300, 12), (500, 460, 1)),
    3: ((896, 448, 12), (448, 896, 12), (600, 300, 12), (300, 600, 12)),
    4: ((900, 300, 12), (1344, 448, 12), (448, 1344, 12)),
    5: ((800, 800, 12), (896, 896, 12), (700, 700, 12)),
    7: ((600, 400, 12), (1344, 896, 12), (900, 600, 12), (600, 900, 12), (896, 1344, 12), (1240, 1754, 12)),
    9: ((1280, 720, 12), (1792, 896, 12), (1600, 900, 12), (1920, 1080, 12), (896, 1792, 12)),
    10: ((1024, 1024, 12), (1344, 1344, 12)),
    13: ((640, 480, 12), (800, 600, 12), (1024, 768, 12), (1792, 1344, 12), (1344, 1792, 12)),
}
SINGLE_COUNTS = tuple(_SIZES)


@lru_cache(maxsize=65536)
def _num_tiles(width: int, height: int, max_tiles: int) -> int:
    return Canvas(width, height, max_tiles).num_tiles


def choose_canvas(num_tiles: int, chance: Chance, *, is_large: bool = False) -> Canvas:
    """A canvas that is cut into `num_tiles`; `is_large` has at least as many pixels as its tiles hold."""
    sizes = [size for size in _SIZES[num_tiles] if not is_large or size[0] * size[1] >= (num_tiles - 1) * TILE**2]
    width, height, max_tiles = chance.pick(sizes)
    while True:
        wide, high = width, height
        if not is_large and chance.is_true(0.25):
            wide, high = (round(side * chance.uniform(0.94, 1.06)) for side in (width, height))
        if _num_tiles(wide, high, max_tiles) == num_tiles:
            return Canvas(wide, high, max_tiles)


def distance(first: Sequence[int], second: Sequence[int]) -> float:
    """How far apart two colours are, 0 to 441."""
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5


def paint_background(canvas: Canvas, chance: Chance) -> tuple[Image.Image, ImageDraw.ImageDraw, str]:
    """An empty picture, a pen for it, and the background's key in `BACKGROUNDS`."""
    name = "white" if chance.is_true(0.35) else chance.pick(tuple(BACKGROUNDS))
    rgb = vary(BACKGROUNDS[name][0], chance, 5)
    image = Image.new("RGB", (canvas.width, canvas.height), rgb)
    return image, ImageDraw.Draw(image), name


def vary(rgb: Sequence[int], chance: Chance, most: int) -> tuple[int, int, int]:
    """A colour close to `rgb`."""
    red, green, blue = (min(255, max(0, part + chance.between(-most, most))) for part in rgb)
    return red, green, blue


# Words that are printed in the picture are repeated to the letter.
_VERBATIM = ("{text}", "{name}", "{names}", "{winner}", "{value}")


def fill(pair: tuple[str, str], fields: Mapping[str, object]) -> tuple[str, str]:
    """A template of question and answer with its fields; an English answer starts with a capital."""
    question, answer = (text.format(**fields) for text in pair)
    return question, answer if pair[1].startswith(_VERBATIM) else answer[:1].upper() + answer[1:]
