"""A step plan as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.kernels import AttentionBatch, PrefillChunk
from tilewise.steps import Chunk, StepPlan


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Shapes:
        token_ids: (T,) int64 · image_positions, image_rows: (I,) int64, where the step's image slots are and
        which rows of the flattened embedding pool fill them · last: (B,) int64, the sampled tokens' places.

    `sampled_ids` names the sequence of each row of `last`.
    """  # noqa: D205

    token_ids: Tensor
    image_positions: Tensor
    image_rows: Tensor
    last: Tensor
    sampled_ids: tuple[int, ...]
    attention: AttentionBatch


def build_batch(plan: StepPlan, block_size: int, device: torch.device) -> StepBatch:
    """Lay the plan's chunks one after the other: decodes, then prefills."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    image_positions: list[int] = []
    image_rows: list[int] = []
    last: list[int] = []
    sampled: list[int] = []
    chunks: list[PrefillChunk] = []
    for number, chunk in enumerate(plan.chunks):
        offset = len(token_ids)
        assert chunk.token_ids is not None, "the runner does not yet keep sampled ids on the device"
        token_ids += chunk.token_ids
        positions += range(chunk.start, chunk.end)
        slots += _slots(chunk, block_size)
        for piece in chunk.image_rows:
            image_positions += range(offset + piece.start - chunk.start, offset + piece.end - chunk.start)
            image_rows += range(piece.first_row, piece.first_row + piece.end - piece.start)
        if chunk.is_sampled:
            last.append(len(token_ids) - 1)
            sampled.append(chunk.sequence_id)
        if number >= len(plan.decodes):
            blocks = torch.tensor(chunk.blocks, device=device)
            chunks.append(PrefillChunk(offset, chunk.start, chunk.end, blocks))
    lengths = [chunk.end for chunk in plan.decodes]

    def on_device(values: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    attention = AttentionBatch(
        positions=on_device(positions),
        slots=on_device(slots),
        num_decodes=len(plan.decodes),
        block_table=_block_table(plan.decodes).to(device, non_blocking=True),
        lengths=on_device(lengths, torch.int32),
        chunks=tuple(chunks),
    )
    return StepBatch(
        on_device(token_ids),
        on_device(image_positions),
        on_device(image_rows),
        on_device(last),
        tuple(sampled),
        attention,
    )


def _slots(chunk: Chunk, block_size: int) -> list[int]:
    return [
        chunk.blocks[position // block_size] * block_size + position % block_size
        for position in range(chunk.start, chunk.end)
    ]


def _block_table(chunks: Sequence[Chunk]) -> Tensor:
    width = max((len(chunk.blocks) for chunk in chunks), default=0)
    table = [[*chunk.blocks, *[-1] * (width - len(chunk.blocks))] for chunk in chunks]
    return torch.tensor(table, dtype=torch.int32).reshape(len(chunks), width)
