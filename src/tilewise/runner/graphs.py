"""CUDA graphs of whole decode steps: the CPU launches one thing instead of a thousand.

One graph for each of a few batch sizes; a smaller batch is padded with rows that decode into a scratch block,
which no sequence holds. Inputs and outputs have fixed places; a replay reads the samples of the step before it
where the host does not know them yet.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tilewise.cache.kv import CacheTensors
from tilewise.kernels import AttentionBatch
from tilewise.kernels.transfer import fill
from tilewise.model.internvl import InternVL
from tilewise.runner.batch import StepLayout


@dataclass(frozen=True, slots=True)
class _Captured:
    """Shapes: wide: (4, B) int64, token ids, positions, slots, sources · narrow: (B * (1 + max_blocks),) int32,
    lengths, then the block table · logits: (B, V) fp32.
    """  # noqa: D205

    graph: torch.cuda.CUDAGraph
    wide: Tensor
    narrow: Tensor
    logits: Tensor


class DecodeGraphs:
    """Captured once, before the first request."""

    def __init__(self, model: InternVL, caches: CacheTensors, max_blocks: int, latest: Tensor) -> None:
        """Name what every graph works on; `latest` (rows,) int64 holds the samples of the last step.

        The caches' last block is the scratch block. `max_blocks` bounds the blocks of a sequence.
        """
        self._model, self._caches, self._latest = model, caches, latest
        self._max_blocks = max_blocks
        self._block_size = caches.k.shape[2]
        self._scratch_block = caches.k.shape[1] - 1
        self._captured: dict[int, _Captured] = {}

    @torch.inference_mode()
    def capture(self, sizes: tuple[int, ...]) -> None:
        """Capture a graph for every batch size, the largest first: the others find room in its memory."""
        pool = torch.cuda.graph_pool_handle()
        for size in sorted(sizes, reverse=True):
            wide = torch.zeros(4, size, dtype=torch.int64, device=self._latest.device)
            narrow = torch.zeros(size * (1 + self._max_blocks), dtype=torch.int32, device=self._latest.device)
            self._fill(wide, narrow, None)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are compiled and chosen outside of the capture
                self._step(wide, narrow)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._step(wide, narrow)
            self._captured[size] = _Captured(graph, wide, narrow, logits)

    def find_size(self, layout: StepLayout) -> int | None:
        """Return the batch size whose graph can run a step; None if there is none, or if it is no pure decode."""
        number = len(layout.lengths)
        if layout.prefills or not number:
            return None
        return min((size for size in self._captured if size >= number), default=None)

    def replay(self, size: int, layout: StepLayout) -> Tensor:
        """Run a step: logits (B, V) fp32, valid until the next replay. `latest` then has the likeliest tokens."""
        captured = self._captured[size]
        self._fill(captured.wide, captured.narrow, layout)
        captured.graph.replay()
        return captured.logits[: len(layout.lengths)]

    def _fill(self, wide: Tensor, narrow: Tensor, layout: StepLayout | None) -> None:
        """Copy a layout, padded, to a graph's inputs."""
        size = wide.shape[1]
        ids = np.zeros((4, size), np.int64)
        ids[2] = self._scratch_block * self._block_size
        ids[3] = -1
        lengths = np.ones(size, np.int32)
        table = np.full((size, self._max_blocks), self._scratch_block, np.int32)
        if layout is not None:
            number = len(layout.lengths)
            ids[:, :number] = layout.token_ids, layout.positions, layout.slots, layout.sources
            lengths[:number] = layout.lengths
            table[:number, : layout.block_table.shape[1]] = layout.block_table
        fill(wide, ids)
        fill(narrow, np.concatenate((lengths, table.ravel())))

    def _step(self, wide: Tensor, narrow: Tensor) -> Tensor:
        token_ids, positions, slots, sources = wide.unbind()
        size = len(token_ids)
        lengths, table = narrow.split([size, size * self._max_blocks])
        token_ids = torch.where(sources < 0, token_ids, self._latest[sources.clamp(min=0)])
        attention = AttentionBatch(positions, slots, size, table.view(size, self._max_blocks), lengths)
        decoder = self._model.decoder
        hidden = decoder(decoder.embedding(token_ids), self._caches.k, self._caches.v, attention)
        logits = decoder.logits(hidden)
        self._latest[:size] = logits.argmax(dim=-1)
        return logits
