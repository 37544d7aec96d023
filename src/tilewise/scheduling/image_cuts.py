"""Which large pictures are cut, or are to be, for steps to come: they would hold up everybody in the step itself.

Only bookkeeping. The engine cuts what `take_wanted` names, says so with `mark_ready`, and forgets what `take_dropped`
names. The order is that of the step, which is fair: every step asks anew for the pictures that are not begun.
"""

from collections.abc import Set

from tilewise.types import PreparedImage


class ImageCuts:
    """Pictures from when a chunk first needs one to when none does any more."""

    def __init__(self, max_pixels: int, max_tiles: int) -> None:
        """Cut sources of `max_pixels` at a time, and keep `max_tiles` tiles; one picture is always allowed."""
        self.max_pixels, self.max_tiles = max_pixels, max_tiles
        self._wanted: dict[bytes, PreparedImage] = {}
        self._begun: dict[bytes, PreparedImage] = {}
        self._num_tiles: dict[bytes, int] = {}  # of those that are cut
        self._dropped: list[bytes] = []

    def ask(self, image: PreparedImage) -> bool:
        """Whether a picture is cut; one that is not even begun is wanted in this step."""
        is_cut = image.digest in self._num_tiles
        if not is_cut and image.digest not in self._begun:
            self._wanted.setdefault(image.digest, image)
        return is_cut

    def take_wanted(self) -> list[PreparedImage]:
        """Those whose cutting begins now, in the order in which the step asked for them."""
        taken: list[PreparedImage] = []
        for digest, image in self._wanted.items():
            if not self._has_room(image):
                break
            self._begun[digest] = image
            taken.append(image)
        self._wanted.clear()
        return taken

    def mark_ready(self, digest: bytes) -> bool:
        """A picture is cut; False where nobody needs it any more."""
        image = self._begun.pop(digest, None)
        if image is not None:
            self._num_tiles[digest] = image.num_tiles
        return image is not None

    def keep(self, digests: Set[bytes]) -> None:
        """Drop all but these."""
        for digest in (self._begun.keys() | self._num_tiles.keys()) - digests:
            self._begun.pop(digest, None)
            self._num_tiles.pop(digest, None)
            self._dropped.append(digest)

    def take_dropped(self) -> list[bytes]:
        """Those that were begun and are not needed any more; each is named once."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def check_integrity(self) -> None:
        """Raise unless each picture is in one state, and the bounds hold."""
        assert not self._begun.keys() & self._num_tiles.keys(), "a picture is cut and still to be cut"
        num_pictures = len(self._begun) + len(self._num_tiles)
        assert len(self._begun) <= 1 or self._count_pixels() <= self.max_pixels, "too much is cut at once"
        assert num_pictures <= 1 or self._count_tiles() <= self.max_tiles, "too many tiles are kept"

    def _has_room(self, image: PreparedImage) -> bool:
        if not self._begun and not self._num_tiles:
            return True
        has_pixels = not self._begun or self._count_pixels() + image.num_pixels <= self.max_pixels
        return has_pixels and self._count_tiles() + image.num_tiles <= self.max_tiles

    def _count_pixels(self) -> int:
        return sum(image.num_pixels for image in self._begun.values())

    def _count_tiles(self) -> int:
        return sum(image.num_tiles for image in self._begun.values()) + sum(self._num_tiles.values())
