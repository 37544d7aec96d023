"""What an engine is asked: prepared pictures, their places in the prompt, and the sequence to continue."""

from dataclasses import dataclass, field

from tilewise.errors import InputError
from tilewise.types.checks import check_count
from tilewise.types.generation import GenerationConfig


@dataclass(frozen=True, slots=True)
class TilingParameters:
    """How a picture is cut: every field changes the tiles, so every field is part of a picture's identity."""

    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True
    tile_size: int = 448

    def __post_init__(self) -> None:
        """Refuse counts that no grid satisfies."""
        check_count("max_dynamic_patch", self.max_tiles, 1, 64)
        check_count("min_dynamic_patch", self.min_tiles, 1, self.max_tiles)
        check_count("tile_size", self.tile_size, 1, 4096)


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A decoded picture and the grid it will be cut into; the tiles themselves are made beside the tower.

    Shapes:
        pixels: height * width * 3 bytes, RGB, row-major; a view, since nobody copies them on their way.

    `digest` is 32 bytes over mode, size, pixels and tiling: the picture's identity in every cache.
    """

    width: int
    height: int
    pixels: memoryview = field(repr=False)
    columns: int
    rows: int
    has_thumbnail: bool
    digest: bytes

    @property
    def num_pixels(self) -> int:
        """Pixels before any cutting."""
        return self.width * self.height

    @property
    def num_tiles(self) -> int:
        """Tiles that the tower sees: the grid, and the thumbnail where there is one."""
        return self.columns * self.rows + int(self.has_thumbnail)


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The half-open range [start, end) of prompt positions that picture number `image` fills."""

    start: int
    end: int
    image: int

    def __post_init__(self) -> None:
        """Refuse what is no range of positions."""
        if any(type(number) is not int for number in (self.start, self.end, self.image)):
            raise InputError("An image span must hold whole numbers.", param="spans")


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue, ready for the engine: ids, spans and pixels, no text.

    `token_ids` holds the image-context id at every position of a span. `stop_token_ids` is complete: the
    template's stops and the caller's, empty where the caller ignores them. `namespace` separates caches.
    `is_streamed` says that somebody reads the tokens as they come, so that none should wait for others' pictures.
    """

    request_id: str
    token_ids: tuple[int, ...]
    spans: tuple[ImageSpan, ...] = ()
    images: tuple[PreparedImage, ...] = field(default=(), repr=False)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    stop_token_ids: tuple[int, ...] = ()
    namespace: str = ""
    is_streamed: bool = True

    def __post_init__(self) -> None:
        """Hold the spans to the ids: in order, disjoint, inside the prompt, one a picture."""
        previous_end = 0
        for number, span in enumerate(self.spans):
            if span.image != number or not previous_end <= span.start < span.end <= len(self.token_ids):
                raise InputError(f"Image span {number} does not lie in the prompt in order.", param="spans")
            previous_end = span.end
        if len(self.spans) != len(self.images):
            raise InputError(f"{len(self.images)} pictures but {len(self.spans)} image spans.", param="spans")
        if not self.token_ids:
            raise InputError("The prompt is empty; give it text or a picture.", param="prompt")
        for name, ids in (("token_ids", self.token_ids), ("stop_token_ids", self.stop_token_ids)):
            if not set(map(type, ids)) <= {int}:
                raise InputError(f"{name} must hold whole numbers.", param=name)
        for name, text in (("request_id", self.request_id), ("namespace", self.namespace)):
            if type(text) is not str:
                raise InputError(f"{name} must be a text, got a {type(text).__name__}.", param=name)
        if type(self.is_streamed) is not bool:
            raise InputError("is_streamed must be True or False.", param="is_streamed")
