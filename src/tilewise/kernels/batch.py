"""The attention side of one step: which tokens see which blocks. Decodes come first, then prefill chunks.

tokens of a step   | d0 | d1 | … | chunk 0 ………… | chunk 1 ……… |
0            num_decodes                     T
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Positions [start, end) of one sequence, held by the step's tokens from `offset` on.

    Shapes: blocks: (ceil(end / block_size),) int64
    """

    offset: int
    start: int
    end: int
    blocks: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Shapes: positions: (T,) int64 · slots: (T,) int64 · block_table: (num_decodes, max_blocks) int32, -1 padded
    · lengths: (num_decodes,) int32, counting the new token.
    """  # noqa: D205

    positions: Tensor
    slots: Tensor
    num_decodes: int
    block_table: Tensor
    lengths: Tensor
    chunks: tuple[PrefillChunk, ...] = ()
