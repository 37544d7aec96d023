"""Reference counts of KV blocks, each of which is free, idle or held.

    free  --allocate-->  held  --release-->  idle (its content has an identity)  --retain-->  held
                               --release-->  free (it has none)
    idle blocks are given away, least recently used first, when no free one is left; `on_evict` hears of each.

It knows nothing of tokens. Invariant: every block is in exactly one of the three states.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """`num_blocks` blocks, numbered from 0."""

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] = lambda block: None) -> None:
        """Start with every block free."""
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free) + len(self._idle)

    @property
    def num_held(self) -> int:
        """Blocks that somebody refers to."""
        return self.num_blocks - self.num_available

    def can_allocate(self, count: int) -> bool:
        """Tell whether `count` blocks are available."""
        return count <= self.num_available

    def count_idle(self, blocks: Iterable[int]) -> int:
        """Count those that `retain` would take from the available ones."""
        return sum(block in self._idle for block in blocks)

    def count_sole(self, blocks: Iterable[int]) -> int:
        """Count those that have one reference: `release` would make them available."""
        return sum(self._references[block] == 1 for block in blocks)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` blocks with one reference each; the caller has asked `can_allocate`."""
        if not self.can_allocate(count):
            raise ValueError(f"{count} blocks wanted, {self.num_available} available")
        blocks: list[int] = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._on_evict(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def retain(self, block: int) -> None:
        """Add a reference to a held or idle block."""
        if self._references[block] == 0:
            if block not in self._idle:
                raise ValueError(f"block {block} is free: its content is gone")
            del self._idle[block]
        self._references[block] += 1

    def release(self, blocks: Iterable[int], is_identified: Callable[[int], bool] = lambda block: False) -> None:
        """Drop one reference of each; a block that nobody refers to goes idle if it is identified, else free.

        Give the last block of a sequence first: then its tail is evicted before its head.
        """
        for block in blocks:
            if self._references[block] < 1:
                raise ValueError(f"block {block} is not held")
            self._references[block] -= 1
            if self._references[block] == 0:
                if is_identified(block):
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def check_integrity(self, holders: Iterable[Iterable[int]] = ()) -> None:
        """Raise unless every block is in one state and, if `holders` lists them all, references add up."""
        free, idle = set(self._free), set(self._idle)
        held = {block for block, count in enumerate(self._references) if count > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free | idle | held) == len(free) + len(idle) + len(held), "a block is in two states"
        assert len(free) + len(idle) + len(held) == self.num_blocks, "a block is lost"
        expected = [0] * self.num_blocks
        for blocks in holders:
            for block in blocks:
                expected[block] += 1
        assert expected == self._references, "references do not add up"
