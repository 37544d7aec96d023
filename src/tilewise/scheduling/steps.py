"""What one step is: the budgets that bound it, the plan that the runner executes, and what comes back."""

import math
from dataclasses import dataclass

from tilewise.types import PreparedImage, Request, TokenLogprob


@dataclass(frozen=True, slots=True)
class Budgets:
    """Upper bounds of one step and of one sequence, in tokens, tiles and sequences.

    A step in which an answer is decoded that somebody reads as it comes does at most `max_busy_work`, in prompt tokens,
    of which a tile to encode counts `tile_work`; one tile is always allowed.

    A step cuts pictures of `max_step_pixels` source pixels together. A larger one is cut before, as many at a time as
    have `max_cut_pixels`, and `max_cut_tiles` tiles of such pictures are kept; one picture is always allowed.
    """

    max_step_tokens: int
    max_step_tiles: int
    max_sequences: int
    session_len: int
    block_size: int
    tokens_per_tile: int
    use_prefix_cache: bool = True
    max_busy_work: int | None = None
    tile_work: int = 0
    max_step_pixels: int = 1 << 22
    max_cut_pixels: int = 100_000_000
    max_cut_tiles: int = 64

    @property
    def max_shared_work(self) -> int:
        """Work of a step that namespaces share, so that none waits long for another's pictures: that of a tile."""
        busy_work = self.max_busy_work or self.tile_work + self.tokens_per_tile
        return max(self.tokens_per_tile, busy_work)


@dataclass(frozen=True, slots=True)
class TileJob:
    """Encode one tile of a picture into a row of the embedding pool; `namespace` is whose cache it enters."""

    namespace: str
    image: PreparedImage
    tile: int
    row: int


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Positions [start, end) take rows [first_row, …) of the flattened embedding pool instead of token embeddings."""

    start: int
    end: int
    first_row: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, end) of one sequence. `token_ids` is None if its one token is still on the device."""

    sequence_id: int
    start: int
    end: int
    token_ids: tuple[int, ...] | None
    blocks: tuple[int, ...]
    is_sampled: bool
    image_rows: tuple[ImageRows, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: tiles first, then decodes (one token each), then prefill chunks.

    Where it `is_awaited`, nothing is to be launched ahead of its end: it is long, and other API keys' newcomers should
    only wait for the rest of it.
    """

    number: int
    tiles: tuple[TileJob, ...]
    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]
    admitted: tuple[tuple[int, Request], ...]
    released: tuple[int, ...]
    is_awaited: bool = False

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks in the order of the step's tokens."""
        return self.decodes + self.prefills


class StepDraft:
    """A step while the scheduler fills it."""

    def __init__(self, budgets: Budgets) -> None:
        """Start with nothing but the budgets; `work_left` is for who shares the step with streams."""
        self.tokens_left = budgets.max_step_tokens
        self.tiles_left = budgets.max_step_tiles
        self.pixels_left = budgets.max_step_pixels
        self.work_left = math.inf
        self.tiles: list[TileJob] = []
        self.decodes: list[Chunk] = []
        self.prefills: list[Chunk] = []
        self.has_preempted = False
        self.has_streams = False
        self._cut: set[bytes] = set()

    @property
    def token_room(self) -> int:
        """Prompt tokens that may still be added."""
        return int(max(0, min(self.tokens_left, self.work_left)))

    def has_tile_room(self, work: int) -> bool:
        """Another tile may be encoded, which with the chunk's tokens up to its end takes `work`."""
        is_first = not self.tiles and not self.prefills
        return self.tiles_left > 0 and (is_first or work <= self.work_left)

    def has_pixel_room(self, image: PreparedImage) -> bool:
        """The step may cut this picture, or does so already."""
        return image.digest in self._cut or image.num_pixels <= self.pixels_left

    def add_tile(self, job: TileJob, work: int) -> None:
        """Encode one more tile."""
        self.tiles.append(job)
        self.tiles_left -= 1
        self.work_left -= work

    def cut_inside(self, image: PreparedImage) -> None:
        """Count the pixels of a picture that the step itself cuts, once."""
        if image.digest not in self._cut:
            self._cut.add(image.digest)
            self.pixels_left -= image.num_pixels

    def withdraw(self, sequence_id: int) -> int:
        """Take back the decode of a sequence that is preempted, and count it."""
        kept = [chunk for chunk in self.decodes if chunk.sequence_id != sequence_id]
        num_withdrawn = len(self.decodes) - len(kept)
        self.decodes = kept
        self.tokens_left += num_withdrawn
        return num_withdrawn

    def spend_tokens(self, number: int) -> None:
        """Count prompt tokens of a chunk."""
        self.tokens_left -= number
        self.work_left -= number


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the runner says of one sampled sequence; where it has an `error` there is no token."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None
