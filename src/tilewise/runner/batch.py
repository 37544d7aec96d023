"""A step plan as arrays on the host, and those as tensors on the device: two copies, whatever the step holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tilewise.kernels import AttentionBatch, PrefillChunk
from tilewise.kernels.transfer import upload
from tilewise.steps import Chunk, StepPlan

_NO_ROWS: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class StepLayout:
    """A step on the host, decodes first, then prefills.

    Shapes:
        token_ids, positions, slots: (T,) int64 · sources: (T,) int64, the row of the last step's samples that a
        token is, or -1 where it is known · image_positions, image_rows: (I,) int64 · last: (B,) int64, the places
        of the tokens behind which is sampled · lengths: (D,) int32 · block_table: (D, max_blocks) int32, -1 padded

    `sampled_ids` names the sequence of each row of `last`.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    sources: np.ndarray
    image_positions: np.ndarray
    image_rows: np.ndarray
    last: np.ndarray
    lengths: np.ndarray
    block_table: np.ndarray
    prefills: tuple[Chunk, ...]
    sampled_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The same on the device; `token_ids` are all known there."""

    token_ids: Tensor
    image_positions: Tensor
    image_rows: Tensor
    last: Tensor
    attention: AttentionBatch


def lay_out(plan: StepPlan, block_size: int, sampled_rows: Mapping[int, int] = _NO_ROWS) -> StepLayout:
    """Lay the plan's chunks one after the other.

    `sampled_rows` gives the row of every sequence in the last step's samples, for tokens that are only there yet.
    """
    chunks = plan.chunks
    offsets = np.cumsum([0, *(chunk.num_tokens for chunk in chunks)])
    token_ids, sources = np.zeros(offsets[-1], np.int64), np.full(offsets[-1], -1, np.int64)
    positions, slots = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int64)
    image_positions: list[np.ndarray] = []
    image_rows: list[np.ndarray] = []
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
            image_positions.append(np.arange(piece.start, piece.end) + (start - chunk.start))
            image_rows.append(np.arange(piece.end - piece.start) + piece.first_row)
    sampled = [number for number, chunk in enumerate(chunks) if chunk.is_sampled]
    return StepLayout(
        token_ids,
        positions,
        slots,
        sources,
        _join(image_positions),
        _join(image_rows),
        last=offsets[1:][sampled] - 1,
        lengths=np.array([chunk.end for chunk in plan.decodes], np.int32),
        block_table=_build_block_table(plan.decodes),
        prefills=plan.prefills,
        sampled_ids=tuple(chunks[number].sequence_id for number in sampled),
    )


def _build_block_table(chunks: Sequence[Chunk]) -> np.ndarray:
    width = max((len(chunk.blocks) for chunk in chunks), default=0)
    table = np.full((len(chunks), width), -1, np.int32)
    for row, chunk in zip(table, chunks, strict=True):
        row[: len(chunk.blocks)] = chunk.blocks
    return table


def build_batch(layout: StepLayout, device: torch.device, latest: Tensor) -> StepBatch:
    """Copy a layout to the device, and take from `latest`, the last step's samples, what the host does not know.

    Shapes: latest: (rows,) int64
    """
    blocks = [np.array(chunk.blocks, np.int64) for chunk in layout.prefills]
    is_pending = layout.sources >= 0
    places, rows = is_pending.nonzero()[0], layout.sources[is_pending]
    wide = (layout.token_ids, layout.positions, layout.slots, layout.image_positions, layout.image_rows, layout.last)
    parts = _upload([*wide, places, rows, *blocks], device)
    token_ids, positions, slots, image_positions, image_rows, last, places, rows, *blocks = parts
    token_ids[places] = latest[rows]
    lengths, table = _upload([layout.lengths, layout.block_table.ravel()], device)
    chunks: list[PrefillChunk] = []
    offset = len(layout.lengths)
    for chunk, own in zip(layout.prefills, blocks, strict=True):
        chunks.append(PrefillChunk(offset, chunk.start, chunk.end, own))
        offset += chunk.num_tokens
    attention = AttentionBatch(
        positions=positions,
        slots=slots,
        num_decodes=len(layout.lengths),
        block_table=table.view(layout.block_table.shape),
        lengths=lengths,
        chunks=tuple(chunks),
    )
    return StepBatch(token_ids, image_positions, image_rows, last, attention)


def _upload(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    return upload(np.concatenate(arrays), device).split([len(array) for array in arrays])


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
