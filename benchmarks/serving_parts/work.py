"""What every engine is timed on: how many requests, how long, and the pictures.

All pictures of one run differ, and those of two runs with different seeds too, so that no cache helps.
"""

import io
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

QUESTION = "请描述图中内容"
STREAM_TASK = "写一个尽可能长的童话，编号 {}"
MIXED_SIZES = ((600, 400), (1280, 720), (1024, 1024), (800, 1200), (448, 448))  # 7, 9, 10, 7, 1 tiles
SEED_SIZE = (600, 400)
_JPEG_QUALITY = 95
_STRIDE = 7919  # pixels between the first ones that two neighbouring seeds change


@dataclass(frozen=True, slots=True)
class Work:
    """How much is asked; the defaults are what the bars are about. `max_tiles` of a picture: None is the model's own.

    Units: seconds and tokens by name.
    """

    runs: int = 5
    warm_ups: int = 2
    answer_tokens: int = 80
    mixed_requests: int = 128
    mixed_tokens: int = 128
    streams: int = 16
    stream_tokens: int = 1200
    settle_s: float = 1.5
    quiet_s: float = 2.5
    stall_size: tuple[int, int] = (640, 480)  # 13 tiles
    stall_pictures: int = 12
    stall_interval_s: float = 1.0
    stall_tokens: int = 8
    large_requests: int = 64
    large_size: tuple[int, int] = (4000, 3000)
    large_tokens: int = 16
    http_rounds: int = 2
    max_tiles: int | None = None


QUICK = Work(
    runs=2,
    warm_ups=1,
    answer_tokens=8,
    mixed_requests=8,
    mixed_tokens=8,
    streams=2,
    settle_s=0.5,
    quiet_s=1.0,
    stall_pictures=2,
    large_requests=2,
    large_tokens=2,
    max_tiles=1,
)


class Pictures:
    """An endless supply of pictures; a second one with the same seed and base supplies the same."""

    def __init__(self, base: Image.Image, seed: int) -> None:
        """Start anew; `base` is the picture that `one_pixel` changes."""
        self._base = base
        self._seed = seed
        self._numbers = itertools.count()

    def one_pixel(self) -> Image.Image:
        """The base with one pixel changed, so strongly that JPEG keeps it."""
        picture = self._base.copy()
        place = (self._seed * _STRIDE + next(self._numbers)) % (picture.width * picture.height)
        row, column = divmod(place, picture.width)
        channels = np.asarray(picture)[row, column]
        picture.putpixel((column, row), tuple((int(channel) + 128) % 256 for channel in channels))
        return picture

    def noise(self, sizes: Iterable[tuple[int, int]]) -> list[Image.Image]:
        """Smooth coloured noise, a picture of each (width, height)."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow resizes without the interpreter's lock
            return list(pool.map(self._draw, sizes, self._numbers))

    def _draw(self, size: tuple[int, int], number: int) -> Image.Image:
        random = np.random.default_rng((self._seed, number))
        spots = random.integers(0, 256, (size[1] // 20 + 1, size[0] // 20 + 1, 3), dtype=np.uint8)
        return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def load_base(path: str | os.PathLike[str]) -> Image.Image:
    """The seed request's picture, brought to its size: RGB, 7 tiles."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    return rgb if rgb.size == SEED_SIZE else rgb.resize(SEED_SIZE, Image.Resampling.BICUBIC)


def encode_jpeg(picture: Image.Image) -> bytes:
    """The picture as a client would send it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> Image.Image:
    """What the server sees of a JPEG."""
    return Image.open(io.BytesIO(data)).convert("RGB")
