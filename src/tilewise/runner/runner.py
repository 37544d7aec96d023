"""One rank's work: it holds the model and the cache tensors, and turns a step plan into sampled tokens.

A step is launched without waiting for it. The next one may be launched before this one is collected: it takes the
tokens that the host does not know yet from the device.
"""

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tilewise import kernels
from tilewise.cache.tensors import CacheTensors
from tilewise.config import ResolvedConfig
from tilewise.inputs.text.grammar import Guide
from tilewise.kernels import upload
from tilewise.model.internvl import InternVL
from tilewise.runner.batch import StepLayout, build_batch, lay_out
from tilewise.runner.forward import compute_logits
from tilewise.runner.graphs import StepGraphs
from tilewise.runner.sampler import Samples, SamplingState, sample
from tilewise.scheduling.steps import Sampled, StepPlan, TileJob
from tilewise.types import PreparedImage


@dataclass(frozen=True, slots=True)
class Launch:
    """A step on its way: whose tokens it samples, where they will be, and the moments between its stages."""

    sampled_ids: tuple[int, ...]
    states: tuple[SamplingState, ...]
    samples: Samples | None
    has_prefills: bool
    moments: "tuple[_Moment, _Moment, _Moment]"


class _Moment:
    """A point in the device's work, or in the host's where that is the device."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def seconds_to(self, later: "_Moment") -> float:
        if self._event is not None and later._event is not None:
            return self._event.elapsed_time(later._event) / 1e3
        return later._time - self._time


class Runner:
    """Runs steps in the order in which they were planned; nothing here decides what runs."""

    def __init__(self, model: InternVL, caches: CacheTensors, config: ResolvedConfig) -> None:
        """Take a loaded model and allocated caches on one device."""
        self.model = model
        self.caches = caches
        self.config = config
        self.device = caches.k.device
        self.seconds = {"tower": 0.0, "prefill": 0.0, "decode": 0.0}
        # Of the sequences that were admitted and not released yet.
        self.states: dict[int, SamplingState] = {}
        # Of requests that are not admitted yet, by their ids.
        self.guides: dict[str, Guide] = {}
        # The tiles of large pictures that steps to come need, by their digests.
        self.cut_images: dict[bytes, Tensor] = {}
        self.graphs: StepGraphs | None = None
        self._latest = torch.zeros(config.max_batch_size, dtype=torch.int64, device=self.device)
        self._sampled_rows: dict[int, int] = {}
        self._last_cut: tuple[bytes, Tensor] | None = None
        self._seeds = random.Random()
        if config.graphs is not None and kernels.decline_capture(caches.k[0]) is None:
            with self._on_device():
                self.graphs = StepGraphs(model, caches, -(-config.session_len // config.block_size), self._latest)
                self.graphs.capture(config.graphs)
                # The first picture must not wait for a compiler.
                kernels.cut_tiles(torch.zeros(2, 3, 3, dtype=torch.uint8, device=self.device), 2, 1, True, 14)

    def run(self, plan: StepPlan) -> dict[int, Sampled]:
        """Run one step to its end."""
        return self.collect(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Launch:
        """Start one step: tiles, then tokens, then the sampler. At most one step may be uncollected by then."""
        with self._on_device():
            for sequence_id in plan.released:
                self.states.pop(sequence_id, None)
            for sequence_id, request in plan.admitted:
                guide = self.guides.pop(request.request_id, None)
                self.states[sequence_id] = SamplingState(request, self._seeds.getrandbits(64), guide)
            started = _Moment(self.device)
            if plan.tiles:
                self.encode(plan.tiles)
            encoded = _Moment(self.device)
            layout = lay_out(plan, self.config.block_size, self._sampled_rows)
            states = tuple(self.states[sequence_id] for sequence_id in layout.sampled_ids)
            samples = self._sample(layout, states)
            self._sampled_rows = {sequence_id: row for row, sequence_id in enumerate(layout.sampled_ids)}
            moments = started, encoded, _Moment(self.device)
            return Launch(layout.sampled_ids, states, samples, bool(plan.prefills), moments)

    def collect(self, launch: Launch) -> dict[int, Sampled]:
        """Wait for a step and return what it sampled."""
        started, encoded, ended = launch.moments
        ended.wait()
        self.seconds["tower"] += started.seconds_to(encoded)
        self.seconds["prefill" if launch.has_prefills else "decode"] += encoded.seconds_to(ended)
        if launch.samples is None:
            return {}
        results: dict[int, Sampled] = {}
        rows = zip(launch.sampled_ids, launch.states, launch.samples.read(), strict=True)
        for sequence_id, state, (token_id, logprob) in rows:
            state.append(token_id)
            results[sequence_id] = Sampled(token_id, logprob, state.error)
        return results

    def encode(self, jobs: tuple[TileJob, ...]) -> None:
        """Cut what the jobs name out of their pictures and write the tower's output to the pool's rows.

        Call it in inference mode.
        """
        size = self.config.model.vision.image_size
        tiles = torch.empty(len(jobs), size, size, 3, dtype=torch.uint8, device=self.device)
        for place, job in zip(tiles, jobs, strict=True):
            place.copy_(self._cut(job.image)[job.tile])
        rows = np.array([job.row for job in jobs])
        if self.graphs is None or not self.graphs.encode(tiles, rows):
            embeddings = self.model.encode_tiles(kernels.normalize_tiles(tiles, self.model.dtype))
            self.caches.tiles[upload(rows, self.device)] = embeddings

    def _on_device(self) -> AbstractContextManager[object]:
        # CUDA's current device is the thread's, and Triton launches on the current one.
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _cut(self, image: PreparedImage) -> Tensor:
        """All tiles of a picture; the last one cut is kept, since a picture's tiles may be spread over steps."""
        if (tiles := self.cut_images.get(image.digest)) is not None:
            if tiles.is_cuda:  # they were made on another stream, which must not reuse their memory too soon
                tiles.record_stream(torch.cuda.current_stream())
            return tiles
        if self._last_cut is None or self._last_cut[0] != image.digest:
            pixels = upload(np.frombuffer(image.pixels, np.uint8), self.device)
            pixels = pixels.view(image.height, image.width, 3)
            size = self.config.model.vision.image_size
            tiles = kernels.cut_tiles(pixels, image.columns, image.rows, image.has_thumbnail, size)
            self._last_cut = image.digest, tiles
        return self._last_cut[1]

    def _sample(self, layout: StepLayout, states: Sequence[SamplingState]) -> Samples | None:
        """Run the tokens of a step and choose the next ones, which `_latest` has then."""
        captured = None if self.graphs is None else self.graphs.find(layout)
        if self.graphs is None or captured is None:
            logits = compute_logits(self.model, self.caches, build_batch(layout, self.device), self._latest)
        else:
            logits = self.graphs.replay(captured, layout)
        if not states:
            return None
        if captured is not None and all(state.is_plain for state in states):
            samples = Samples(self._latest[: len(states)], (None,) * len(states))
        else:
            samples = sample(logits, states)
            self._latest[: len(states)] = samples.token_ids
        for state in states:
            state.num_pending += 1
        return samples.download()
