"""Which large pictures are cut, or are to be, for steps to come: they would hold up everybody in the step itself.

Only bookkeeping. Whoever runs the steps takes what shall be cut from `take_wanted`, says so with `mark_ready` once it
is, and gives up or forgets what `take_dropped` names.
"""

from collections.abc import Set

from tilewise.types import PreparedImage


class ImageCuts:
    """Pictures from when a chunk first needs one to when none does any more; the tiles of so many are kept."""

    def __init__(self, max_tiles: int) -> None:
        """Keep tiles up to `max_tiles` together; one picture is always allowed."""
        self.max_tiles = max_tiles
        self._wanted: dict[bytes, PreparedImage] = {}
        self._num_tiles: dict[bytes, int] = {}  # of those that are begun or ready
        self._ready: set[bytes] = set()
        self._dropped: list[bytes] = []

    def ask(self, image: PreparedImage) -> bool:
        """Whether a picture is cut; one that is not will be wanted from now on."""
        if image.digest not in self._num_tiles:
            self._wanted.setdefault(image.digest, image)
        return image.digest in self._ready

    def take_wanted(self) -> list[PreparedImage]:
        """Those whose cutting may begin now, first come first served."""
        taken: list[PreparedImage] = []
        for digest, image in list(self._wanted.items()):
            if self._num_tiles and sum(self._num_tiles.values()) + image.num_tiles > self.max_tiles:
                break
            self._num_tiles[digest] = image.num_tiles
            taken.append(self._wanted.pop(digest))
        return taken

    def mark_ready(self, digest: bytes) -> bool:
        """A picture is cut; False where nobody needs it any more."""
        if digest in self._num_tiles:
            self._ready.add(digest)
        return digest in self._ready

    def keep(self, digests: Set[bytes]) -> None:
        """Drop all but these."""
        for digest in self._wanted.keys() - digests:
            del self._wanted[digest]
        for digest in self._num_tiles.keys() - digests:
            del self._num_tiles[digest]
            self._ready.discard(digest)
            self._dropped.append(digest)

    def take_dropped(self) -> list[bytes]:
        """Those that were begun and are not needed any more; each is named once."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def check_integrity(self) -> None:
        """Raise unless each picture is in one state."""
        assert self._ready <= self._num_tiles.keys(), "a picture is cut that was never begun"
        assert not self._wanted.keys() & self._num_tiles.keys(), "a picture is begun and still waits"
        assert len(self._num_tiles) <= 1 or sum(self._num_tiles.values()) <= self.max_tiles, "too many tiles are kept"
