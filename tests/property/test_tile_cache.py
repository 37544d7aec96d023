import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tilewise.cache.tiles import TileCache

KEYS = [(bytes([picture]), tile) for picture in range(3) for tile in range(3)]
keys = st.sampled_from(KEYS)


class Tiles(RuleBasedStateMachine):
    """A tile cache against a model: rows by key in order of use, and what the step has pinned."""

    @initialize(num_rows=st.integers(0, 5))
    def start(self, num_rows: int) -> None:
        self.cache = TileCache(num_rows)
        self.num_rows = num_rows
        self.rows: dict[tuple[bytes, int], int] = {}
        self.pinned: set[tuple[bytes, int]] = set()

    @rule(key=keys)
    def find(self, key: tuple[bytes, int]) -> None:
        row = self.cache.find(key)
        assert row == self.rows.get(key)
        if row is not None:
            self.rows[key] = self.rows.pop(key)
            self.pinned.add(key)

    @precondition(lambda self: self.rows.keys() < set(KEYS))
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key in KEYS if key not in self.rows]))
        row = self.cache.reserve(key)
        if len(self.rows) < self.num_rows:
            assert row is not None
        else:
            victim = next((old for old in self.rows if old not in self.pinned), None)
            assert (row is None) == (victim is None), "a tile that the step uses is never evicted"
            if victim is None:
                return
            assert row == self.rows.pop(victim), "the least recently used goes first"
        assert row not in self.rows.values()
        self.rows[key] = row
        self.pinned.add(key)

    @rule(key=keys)
    def forget(self, key: tuple[bytes, int]) -> None:
        self.cache.forget(key)
        self.rows.pop(key, None)
        self.pinned.discard(key)

    @rule()
    def unpin(self) -> None:
        self.cache.unpin()
        self.pinned.clear()

    @invariant()
    def the_model_agrees(self) -> None:
        if hasattr(self, "cache"):
            self.cache.check_integrity()
            assert self.cache.num_pinned == len(self.pinned)


class ManyTiles(Tiles):
    pass


TestTiles = Tiles.TestCase
TestTiles.settings = settings(max_examples=100, stateful_step_count=40)
TestManyTiles = pytest.mark.slow(ManyTiles.TestCase)
TestManyTiles.settings = settings(max_examples=1000, stateful_step_count=80)
