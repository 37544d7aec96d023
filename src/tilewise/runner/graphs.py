"""CUDA graphs of whole steps: the CPU launches one thing instead of a thousand.

Captured are decode steps of a few batch sizes, steps with pieces of prompts of a few numbers of tokens, and the tower
over every number of tiles. A smaller step is padded with tokens that are stored nowhere. Inputs and outputs have fixed
places; a replay reads the samples of the step before it where the host does not know them yet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilewise.cache.tensors import CacheTensors
from tilewise.config import DecoderConfig, GraphSizes
from tilewise.kernels import AttentionBatch, count_items, fill, normalize_tiles
from tilewise.model.internvl import InternVL
from tilewise.runner.batch import StepBatch, StepLayout
from tilewise.runner.forward import compute_logits

_MAX_CHUNKS = 16  # of a captured step; a step has more only where many short prompts meet
# A long prompt alone is not padded: the device is busy for longer than the CPU launches, and cuDNN attends faster. Of a
# narrow decoder the CPU launches a layer in 0.2 ms, in which an H100 multiplies so often (computed).
_MAX_LONELY_TOKENS = 1024
_MULTIPLICATIONS_OF_A_LAUNCH = 69_000_000_000

_Place = tuple[Any, torch.cuda.Stream]  # the memory pool of all captures, and the stream that they are made on


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a captured step has room for; `num_rows` are logits."""

    num_tokens: int
    num_decodes: int
    num_rows: int
    num_chunks: int = 0

    @property
    def num_items(self) -> int:
        """Work items that the chunks of so many tokens may need."""
        return count_items(self.num_tokens, self.num_chunks) if self.num_chunks else 0

    def holds(self, layout: StepLayout) -> bool:
        """Tell whether the step fits. One without chunks is not run by a graph for chunks, whatever the room."""
        if bool(layout.chunks) != bool(self.num_chunks):
            return False
        counts = len(layout.token_ids), len(layout.lengths), len(layout.last), len(layout.chunks)
        return all(map(int.__le__, counts, (self.num_tokens, self.num_decodes, self.num_rows, self.num_chunks)))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's two buffers, and the views that make them a batch.

    Shapes: wide: int64, five fields of T and `last` · narrow: int32, lengths, both block tables, items.
    """

    shape: StepShape
    wide: Tensor
    narrow: Tensor
    batch: StepBatch


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A graph, and where it reads its inputs."""

    graph: Any
    inputs: StepInputs


class StepGraphs:
    """Captured once, before the first request."""

    def __init__(self, model: InternVL, caches: CacheTensors, max_blocks: int, latest: Tensor) -> None:
        """Name what every graph works on; `latest` (rows,) int64 holds the samples of the last step.

        `max_blocks` bounds the blocks of a sequence.
        """
        self._model, self._caches, self._latest = model, caches, latest
        self._max_blocks = max_blocks
        self._max_lonely_tokens = choose_max_lonely_tokens(model.config.decoder)
        self._logits = torch.empty(len(latest), model.config.decoder.num_logits, device=latest.device)
        self.captured: list[CapturedStep] = []  # the smallest first
        self._towers: dict[int, tuple[Any, Tensor, Tensor]] = {}

    @torch.inference_mode()
    def capture(self, sizes: GraphSizes) -> None:
        """Capture a graph for each size; they share their memory, as no two of them run at once."""
        # One stream for all: cuBLAS keeps a workspace for every stream that it has seen.
        place = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        for count in sorted(sizes.tiles, reverse=True):
            self._towers[count] = self._capture_tower(count, place)
        most = len(self._latest)
        shapes = [StepShape(size, min(size, most), min(size, most), _MAX_CHUNKS) for size in sizes.mixed]
        shapes += [StepShape(size, size, size) for size in sizes.decodes]
        for shape in sorted(shapes, key=lambda shape: -shape.num_tokens):  # the others find room in the largest's
            inputs = self.create_inputs(shape)
            self.captured.append(CapturedStep(_capture(lambda inputs=inputs: self.step(inputs.batch), place), inputs))
        self.captured.reverse()

    def find(self, layout: StepLayout) -> CapturedStep | None:
        """Return the smallest captured step that can run this one, if there is any."""
        if len(layout.token_ids) > self._max_lonely_tokens and not len(layout.lengths):
            return None
        return next((captured for captured in self.captured if captured.inputs.shape.holds(layout)), None)

    def replay(self, captured: CapturedStep, layout: StepLayout) -> Tensor:
        """Run a step: logits (B, V) fp32, valid until the next replay. `latest` then has the likeliest tokens."""
        self.fill(captured.inputs, layout)
        captured.graph.replay()
        return self._logits[: len(layout.last)]

    def encode(self, tiles: Tensor, rows: np.ndarray) -> bool:
        """Encode uint8 tiles (N, S, S, 3) into the pool's rows if so many are captured; say whether they were."""
        if len(tiles) not in self._towers:
            return False
        graph, own_tiles, own_rows = self._towers[len(tiles)]
        own_tiles.copy_(tiles)
        fill(own_rows, rows)
        graph.replay()
        return True

    def create_inputs(self, shape: StepShape) -> StepInputs:
        """Allocate a step's inputs, which hold nothing but padding yet."""
        device, width = self._latest.device, self._max_blocks
        fields = [shape.num_tokens] * 5 + [shape.num_rows]
        tables = [shape.num_decodes, shape.num_decodes * width, shape.num_chunks * width, shape.num_items * 4]
        wide = torch.zeros(sum(fields), dtype=torch.int64, device=device)
        narrow = torch.zeros(sum(tables), dtype=torch.int32, device=device)
        token_ids, sources, image_rows, positions, slots, last = wide.split(fields)
        lengths, block_table, chunk_table, items = narrow.split(tables)
        attention = AttentionBatch(
            positions,
            slots,
            shape.num_decodes,
            block_table.view(shape.num_decodes, width),
            lengths,
            chunk_table=chunk_table.view(shape.num_chunks, width),
            items=items.view(-1, 4) if shape.num_chunks else None,
        )
        inputs = StepInputs(shape, wide, narrow, StepBatch(token_ids, sources, image_rows, last, attention))
        self.fill(inputs, None)
        return inputs

    def fill(self, inputs: StepInputs, layout: StepLayout | None) -> None:
        """Copy a layout, padded, to a step's inputs."""
        shape = inputs.shape
        ids = np.full((5, shape.num_tokens), -1, np.int64)  # no source, no picture, no slot
        ids[0] = ids[3] = 0
        last = np.zeros(shape.num_rows, np.int64)
        lengths = np.zeros(shape.num_decodes, np.int32)
        tables = [np.zeros((rows, self._max_blocks), np.int32) for rows in (shape.num_decodes, shape.num_chunks)]
        items = np.zeros((shape.num_items, 4), np.int32)
        if layout is not None:
            fields = layout.token_ids, layout.sources, layout.image_rows, layout.positions, layout.slots
            ids[:, : len(layout.token_ids)] = fields
            last[: len(layout.last)] = layout.last
            lengths[: len(layout.lengths)] = layout.lengths
            for table, own in zip(tables, (layout.block_table, layout.chunk_table), strict=True):
                table[: own.shape[0], : own.shape[1]] = own
            own_items = layout.list_items()
            items[: len(own_items)] = own_items
        fill(inputs.wide, np.concatenate((ids.ravel(), last)))
        fill(inputs.narrow, np.concatenate((lengths, tables[0].ravel(), tables[1].ravel(), items.ravel())))

    def step(self, batch: StepBatch) -> Tensor:
        """What is captured: logits (rows, V) go to one place for all graphs, and the likeliest tokens to `latest`."""
        logits = self._logits[: len(batch.last)]
        logits.copy_(compute_logits(self._model, self._caches, batch, self._latest))
        self._latest[: len(logits)] = logits.argmax(dim=-1)
        return logits

    def _capture_tower(self, count: int, place: _Place) -> tuple[Any, Tensor, Tensor]:
        size, device = self._model.config.vision.image_size, self._latest.device
        tiles = torch.zeros(count, size, size, 3, dtype=torch.uint8, device=device)
        rows = torch.arange(count, device=device)

        def encode() -> None:
            self._caches.tiles[rows] = self._model.encode_tiles(normalize_tiles(tiles, self._model.dtype))

        return _capture(encode, place), tiles, rows


def choose_max_lonely_tokens(decoder: DecoderConfig) -> int:
    """Choose the tokens from which on a prompt without decodes beside it is launched operation by operation."""
    return max(_MAX_LONELY_TOKENS, _MULTIPLICATIONS_OF_A_LAUNCH // decoder.layer_matrix_size)


def _capture(work: Callable[[], object], place: _Place) -> Any:
    """Run once, so that kernels are compiled and chosen outside of the capture, and then capture."""
    pool, stream = place
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        work()
    return graph
