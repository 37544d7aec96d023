"""The attention side of one step: which tokens see which blocks. Decodes come first, then prefill chunks.

tokens of a step   | d0 | d1 | … | chunk 0 ………… | chunk 1 ……… | padding |
0            num_decodes                                    T
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Positions [start, end) of one sequence, held by the step's tokens from `offset` on."""

    offset: int
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Padding has slot -1 and, among the decodes, length 0: it stores nothing, and its outputs are undefined.

    A captured step knows its chunks by `items` alone; elsewhere they are those of the chunks that continue their
    sequence.

    Shapes: positions: (T,) int64 · slots: (T,) int64 · block_table: (num_decodes, max_blocks) int32 ·
        lengths: (num_decodes,) int32, counting the new token · chunk_table: (chunks, max_blocks) int32 ·
        items: (I, 4) int32, see `list_items`
    """

    positions: Tensor
    slots: Tensor
    num_decodes: int
    block_table: Tensor
    lengths: Tensor
    chunks: tuple[PrefillChunk, ...] = ()
    chunk_table: Tensor | None = None
    items: Tensor | None = None


QUERIES = 64  # of an item: fewer waste the matrix units, more leave a short chunk to few multiprocessors
Item = tuple[int, int, int, int]


def list_items(chunks: Iterable[tuple[int, int, int, int]]) -> Iterator[Item]:
    """Cut chunks, each (row of the block table, first token of the step, start, end), into items.

    An item is (first token of the step, number of queries, row of the block table, position of the first query).
    """
    for row, first, start, end in chunks:
        for position in range(start, end, QUERIES):
            yield first + position - start, min(QUERIES, end - position), row, position


def count_items(num_tokens: int, num_chunks: int) -> int:
    """Return the most items that so many tokens in so many chunks can make."""
    return num_tokens // QUERIES + num_chunks
