"""What one step is: the budgets that bound it, the plan that the runner executes, and what comes back."""

from dataclasses import dataclass

from tilewise.types import PreparedImage, Request, TokenLogprob


@dataclass(frozen=True, slots=True)
class Budgets:
    """Upper bounds of one step and of one sequence, in tokens, tiles and sequences."""

    max_step_tokens: int
    max_step_tiles: int
    max_sequences: int
    session_len: int
    block_size: int
    tokens_per_tile: int
    use_prefix_cache: bool = True


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
    """One step: tiles first, then decodes (one token each), then prefill chunks."""

    number: int
    tiles: tuple[TileJob, ...]
    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]
    admitted: tuple[tuple[int, Request], ...]
    released: tuple[int, ...]

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All chunks in the order of the step's tokens."""
        return self.decodes + self.prefills


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the runner says of one sampled sequence; where it has an `error` there is no token."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None
