"""A step plan as arrays on the host, and those as tensors on the device: two copies, whatever the step holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tilewise.kernels import AttentionBatch, PrefillChunk, list_items, upload
from tilewise.scheduling.steps import Chunk, StepPlan

_NO_ROWS: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class StepLayout:
    """A step on the host, decodes first, then prefills.

    Shapes:
        token_ids, positions, slots: (T,) int64 · sources: (T,) int64, the row of the last step's samples that a
        token is, or -1 where it is known · image_rows: (T,) int64, the row of the flattened embedding pool that stands
        in a token's place, or -1 · last: (B,) int64, the places of the tokens behind which is sampled ·
        lengths: (D,) int32 · block_table: (D, max_blocks), chunk_table: (C, max_blocks) int32, -1 padded

    `sampled_ids` names the sequence of each row of `last`.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    sources: np.ndarray
    image_rows: np.ndarray
    last: np.ndarray
    lengths: np.ndarray
    block_table: np.ndarray
    chunk_table: np.ndarray
    chunks: tuple[PrefillChunk, ...]
    sampled_ids: tuple[int, ...]

    def list_items(self, *, continued_only: bool = False) -> np.ndarray:
        """The chunks as `kernels.triton.prefill_attention` takes them: (I, 4) int32."""
        chunks = enumerate(self.chunks)
        items = list_items((n, c.offset, c.start, c.end) for n, c in chunks if c.start or not continued_only)
        return np.array(list(items), np.int32).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The same on the device."""

    token_ids: Tensor
    sources: Tensor
    image_rows: Tensor
    last: Tensor
    attention: AttentionBatch

    @property
    def has_decodes_only(self) -> bool:
        """There is no piece of a prompt, not even room for one."""
        return not self.attention.chunks and self.attention.items is None


def lay_out(plan: StepPlan, block_size: int, sampled_rows: Mapping[int, int] = _NO_ROWS) -> StepLayout:
    """Lay the plan's chunks one after the other.

    `sampled_rows` gives the row of every sequence in the last step's samples, for tokens that are only there yet.
    """
    chunks = plan.chunks
    offsets = np.cumsum([0, *(chunk.num_tokens for chunk in chunks)])
    token_ids, positions, slots = (np.zeros(offsets[-1], np.int64) for _ in range(3))
    sources, image_rows = (np.full(offsets[-1], -1, np.int64) for _ in range(2))
    for chunk, start, end in zip(chunks, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if chunk.token_ids is None:
            sources[start] = sampled_rows[chunk.sequence_id]
        else:
            token_ids[start:end] = chunk.token_ids
        own = np.arange(chunk.start, chunk.end)
        positions[start:end] = own
        first_block = chunk.start // block_size
        blocks = np.array(chunk.blocks[first_block : (chunk.end - 1) // block_size + 1])
        slots[start:end] = blocks[own // block_size - first_block] * block_size + own % block_size
        for piece in chunk.image_rows:
            first = start + piece.start - chunk.start
            rows = np.arange(piece.first_row, piece.first_row + piece.end - piece.start)
            image_rows[first : first + len(rows)] = rows
    sampled = [number for number, chunk in enumerate(chunks) if chunk.is_sampled]
    first_prefill = len(plan.decodes)
    starts = offsets[first_prefill:-1].tolist()
    return StepLayout(
        token_ids,
        positions,
        slots,
        sources,
        image_rows,
        last=offsets[1:][sampled] - 1,
        lengths=np.array([chunk.end for chunk in plan.decodes], np.int32),
        block_table=_build_block_table(plan.decodes),
        chunk_table=_build_block_table(plan.prefills),
        chunks=tuple(PrefillChunk(start, c.start, c.end) for start, c in zip(starts, plan.prefills, strict=True)),
        sampled_ids=tuple(chunks[number].sequence_id for number in sampled),
    )


def _build_block_table(chunks: Sequence[Chunk]) -> np.ndarray:
    width = max((len(chunk.blocks) for chunk in chunks), default=0)
    table = np.full((len(chunks), width), -1, np.int32)
    for row, chunk in zip(table, chunks, strict=True):
        row[: len(chunk.blocks)] = chunk.blocks
    return table


def build_batch(layout: StepLayout, device: torch.device) -> StepBatch:
    """Copy a layout to the device."""
    own = layout
    wide = _upload((own.token_ids, own.sources, own.image_rows, own.last, own.positions, own.slots), device)
    token_ids, sources, image_rows, last, positions, slots = wide
    items = layout.list_items(continued_only=True)
    tables = own.block_table, own.chunk_table, items
    lengths, *narrow = _upload((own.lengths, *(table.ravel() for table in tables)), device)
    block_table, chunk_table, items = (part.view(table.shape) for part, table in zip(narrow, tables, strict=True))
    attention = AttentionBatch(
        positions, slots, len(lengths), block_table, lengths, own.chunks, chunk_table, items if len(items) else None
    )
    return StepBatch(token_ids, sources, image_rows, last, attention)


def _upload(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    return upload(np.concatenate(arrays), device).split([len(array) for array in arrays])
