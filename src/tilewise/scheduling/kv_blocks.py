"""The KV blocks of sequences: found again by what they hold, taken, published once computed, given back.

Only bookkeeping; the tensors are in `cache.tensors`. A block that a running sequence is about to compute is known too,
so that another one may wait to share it.
"""

from collections import Counter
from collections.abc import Sequence as Many

from tilewise.cache.blocks import BlockPool
from tilewise.cache.prefix import PrefixCache, extend_digests
from tilewise.scheduling.sequence import Sequence


class KvBlocks:
    """A pool of blocks, the prefixes that they hold, and what is being computed."""

    def __init__(self, num_blocks: int, block_size: int, use_prefix_cache: bool) -> None:
        """Start with every block free."""
        self.prefix = PrefixCache()
        self.pool = BlockPool(num_blocks, on_evict=self.prefix.forget)
        self._block_size, self._use_prefix_cache = block_size, use_prefix_cache
        self._computing: Counter[bytes] = Counter()

    def count_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self._block_size)

    def count_for_entry(self, sequence: Sequence) -> int:
        """Blocks that a sequence takes when it is admitted: one beyond its prompt's.

        So it is not admitted only to be preempted at its first token.
        """
        return self.count_for(len(sequence.token_ids) + 1)

    def count_available(self, hits: list[int]) -> int:
        """Blocks that may be taken by a sequence which finds `hits` cached."""
        return self.pool.num_available - self.pool.count_idle(hits)

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Return the cached blocks that open the sequence; at least its last token is left to compute."""
        if not self._use_prefix_cache:
            return []
        extend_digests(sequence.digests, sequence.request, sequence.token_ids, self._block_size)
        hits: list[int] = []
        for digest in sequence.digests[: (len(sequence.token_ids) - 1) // self._block_size]:
            block = self.prefix.find(digest)
            if block is None:
                break
            hits.append(block)
        return hits

    def is_computing_next(self, sequence: Sequence, num_hits: int) -> bool:
        """Tell whether a running request computes the block after the hits: worth a wait, to share it."""
        last = (len(sequence.token_ids) - 1) // self._block_size
        return num_hits < min(last, len(sequence.digests)) and self._computing[sequence.digests[num_hits]] > 0

    def enter(self, sequence: Sequence, hits: list[int]) -> bool:
        """Give a sequence, whose first blocks are `hits`, the others of its prompt; False where they are short."""
        wanted = self.count_for_entry(sequence) - len(hits)
        for block in hits:
            self.pool.retain(block)
        if not self.pool.can_allocate(wanted):
            self.pool.release(reversed(hits), self.prefix.is_identified)
            return False
        sequence.blocks = hits + self.pool.allocate(wanted)
        sequence.num_scheduled = len(hits) * self._block_size
        sequence.num_published = len(hits)
        self._computing.update(sequence.digests[len(hits) :])
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Let a sequence hold `num_tokens`, at most one block more than now; False where none is free."""
        if self.count_for(num_tokens) <= len(sequence.blocks):
            return True
        if not self.pool.can_allocate(1):
            return False
        sequence.blocks += self.pool.allocate(1)
        return True

    def publish(self, sequence: Sequence, num_computed: int) -> None:
        """Give every full and computed block its identity."""
        if not self._use_prefix_cache or not sequence.blocks:
            return
        full = min(num_computed, len(sequence.token_ids)) // self._block_size
        known = len(sequence.digests)
        extend_digests(sequence.digests, sequence.request, sequence.token_ids, self._block_size)
        self._computing.update(sequence.digests[known:])
        for number in range(sequence.num_published, full):
            self.prefix.publish(sequence.digests[number], sequence.blocks[number])
        self._forget_computing(sequence.digests[sequence.num_published : full])
        sequence.num_published = max(sequence.num_published, full)

    def give_back(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence; those that are identified may be found again."""
        self._forget_computing(sequence.digests[sequence.num_published :] if sequence.blocks else [])
        self.pool.release(reversed(sequence.blocks), self.prefix.is_identified)
        sequence.blocks, sequence.digests = [], []
        sequence.num_published = 0

    def check_integrity(self, sequences: Many[Sequence]) -> None:
        """Raise unless every block and digest of these sequences, which are all there are, is accounted for."""
        self.pool.check_integrity([sequence.blocks for sequence in sequences])
        self.prefix.check_integrity()
        computing = Counter(d for s in sequences if s.blocks for d in s.digests[s.num_published :])
        assert dict(self._computing) == dict(computing), "a digest is computed by nobody"

    def _forget_computing(self, digests: list[bytes]) -> None:
        self._computing.subtract(digests)
        for digest in digests:
            if not self._computing[digest]:
                del self._computing[digest]
