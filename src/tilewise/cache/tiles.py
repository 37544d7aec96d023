"""Which row of the embedding pool holds which tile: picture embeddings by content, least recently used out first.

Only bookkeeping; the tensor lives beside the tower (`cache.tensors`). Tiles taken since the last `unpin` stay in
place, so what one step encodes or reads cannot be evicted within that step.
"""

from collections import OrderedDict

TileKey = tuple[str, bytes, int]


class TileCache:
    """`num_rows` rows, one encoded tile each; a key is (namespace, picture digest, tile number)."""

    def __init__(self, num_rows: int) -> None:
        """Start empty."""
        self.num_rows = num_rows
        self._free = list(range(num_rows - 1, -1, -1))
        self._rows: OrderedDict[TileKey, int] = OrderedDict()
        self._pinned: set[TileKey] = set()

    @property
    def num_pinned(self) -> int:
        """Tiles that the step uses."""
        return len(self._pinned)

    def find(self, key: TileKey) -> int | None:
        """Return the tile's row and pin it, or None if it must be encoded."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            self._pinned.add(key)
        return row

    def reserve(self, key: TileKey) -> int | None:
        """Give an absent tile a row and pin it, evicting the oldest unpinned one; None if all are pinned."""
        if self._free:
            row = self._free.pop()
        else:
            victim = next((old for old in self._rows if old not in self._pinned), None)
            if victim is None:
                return None
            row = self._rows.pop(victim)
        self._rows[key] = row
        self._pinned.add(key)
        return row

    def forget(self, key: TileKey) -> None:
        """Drop a tile whose encoding failed."""
        row = self._rows.pop(key, None)
        self._pinned.discard(key)
        if row is not None:
            self._free.append(row)

    def unpin(self) -> None:
        """End a step: every tile may be evicted again."""
        self._pinned.clear()

    def check_integrity(self) -> None:
        """Raise unless every row is free or holds one tile."""
        used = list(self._rows.values())
        assert sorted(used + self._free) == list(range(self.num_rows)), "a row is lost or used twice"
        assert self._pinned <= self._rows.keys(), "a pinned tile is gone"
