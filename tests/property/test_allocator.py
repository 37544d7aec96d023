from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tilewise.cache.blocks import BlockPool


class Blocks(RuleBasedStateMachine):
    """A pool against a model: references by block, idle blocks in order of use."""

    @initialize(num_blocks=st.integers(1, 8))
    def start(self, num_blocks: int) -> None:
        self.evicted: list[int] = []
        self.pool = BlockPool(num_blocks, on_evict=self.evicted.append)
        self.num_blocks = num_blocks
        self.references: Counter[int] = Counter()
        self.idle: list[int] = []
        self.identified: set[int] = set()

    @property
    def num_free(self) -> int:
        return self.num_blocks - len(self.idle) - len(+self.references)

    @rule(count=st.integers(0, 9))
    def allocate(self, count: int) -> None:
        if count > self.num_free + len(self.idle):
            assert not self.pool.can_allocate(count)
            with pytest.raises(ValueError, match="available"):
                self.pool.allocate(count)
            return
        expected = self.idle[: max(0, count - self.num_free)]
        self.evicted.clear()
        blocks = self.pool.allocate(count)
        assert self.evicted == expected, "the least recently used go first, and only when nothing is free"
        assert len(set(blocks)) == count
        assert not any(self.references[block] for block in blocks)
        self.idle = self.idle[len(expected) :]
        assert not set(blocks) & set(self.idle)
        self.identified -= set(blocks)
        self.references.update(blocks)

    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        block = data.draw(st.integers(0, self.num_blocks - 1))
        if not self.references[block] and block not in self.idle:
            with pytest.raises(ValueError, match="free"):
                self.pool.retain(block)
            return
        self.pool.retain(block)
        self.references[block] += 1
        if block in self.idle:
            self.idle.remove(block)

    @precondition(lambda self: +self.references)
    @rule(data=st.data(), is_identified=st.booleans())
    def release(self, data: st.DataObject, is_identified: bool) -> None:
        block = data.draw(st.sampled_from(sorted(+self.references)))
        if is_identified:
            self.identified.add(block)
        self.pool.release([block], self.identified.__contains__)
        self.references[block] -= 1
        if not self.references[block] and block in self.identified:
            self.idle.append(block)

    @rule(data=st.data())
    def release_what_nobody_holds(self, data: st.DataObject) -> None:
        block = data.draw(st.integers(0, self.num_blocks - 1))
        if not self.references[block]:
            with pytest.raises(ValueError, match="not held"):
                self.pool.release([block])

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity([list(self.references.elements())])
            assert self.pool.num_held == len(+self.references)
            assert self.pool.num_available == self.num_free + len(self.idle)


class ManyBlocks(Blocks):
    pass


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=100, stateful_step_count=40)
TestManyBlocks = pytest.mark.slow(ManyBlocks.TestCase)
TestManyBlocks.settings = settings(max_examples=1000, stateful_step_count=80)
