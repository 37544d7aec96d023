"""One rank's work: it holds the model and the cache tensors, and turns a step plan into sampled tokens."""

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tilewise import kernels
from tilewise.cache.kv import CacheTensors
from tilewise.config import ResolvedConfig
from tilewise.inputs.grammar import Guide, create_guide
from tilewise.inputs.tokenizer import Tokenizer, load_tokenizer
from tilewise.model.internvl import InternVL
from tilewise.runner.batch import StepBatch, build_batch
from tilewise.runner.sampler import SamplingState, sample
from tilewise.steps import Sampled, StepPlan, TileJob
from tilewise.types import PreparedImage, Request


class Runner:
    """Runs steps in the order in which they were planned; nothing here decides what runs."""

    def __init__(self, model: InternVL, caches: CacheTensors, config: ResolvedConfig, folder: Path) -> None:
        """Take a loaded model and allocated caches on one device, and the folder with its tokenizer."""
        self.model = model
        self.caches = caches
        self.config = config
        self.device = caches.k.device
        self.seconds = {"tower": 0.0, "prefill": 0.0, "decode": 0.0}
        self._states: dict[int, SamplingState] = {}
        self._last_cut: tuple[bytes, Tensor] | None = None
        self._seeds = random.Random()
        self._folder = folder
        self._compiler = ThreadPoolExecutor(1, "tilewise-grammar")

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> dict[int, Sampled]:
        """Run one step: tiles, then tokens, then the sampler."""
        # CUDA's current device is the thread's, and Triton launches on the current one.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return self._run(plan)

    def _run(self, plan: StepPlan) -> dict[int, Sampled]:
        for sequence_id in plan.released:
            self._states.pop(sequence_id, None)
        for sequence_id, request in plan.admitted:
            self._states[sequence_id] = SamplingState(request, self._seeds.getrandbits(64), self._start_guide(request))
        started = time.perf_counter()
        if plan.tiles:
            self._encode(plan.tiles)
            self._synchronize()
        encoded = time.perf_counter()
        batch = build_batch(plan, self.config.block_size, self.device)
        hidden = self._forward(batch)
        sampled = self._sample(batch, hidden)
        self.seconds["tower"] += encoded - started
        self.seconds["prefill" if plan.prefills else "decode"] += time.perf_counter() - encoded
        return sampled

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._folder)

    def _start_guide(self, request: Request) -> Future[Guide] | None:
        """Compile the form of a request's answer while its prompt is computed."""
        form = request.generation.response_format
        return None if form is None else self._compiler.submit(lambda: create_guide(form, self._tokenizer))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()

    def _encode(self, jobs: tuple[TileJob, ...]) -> None:
        """Cut what the jobs name out of their pictures and write the tower's output to the pool's rows."""
        size = self.config.model.vision.image_size
        tiles = torch.empty(len(jobs), size, size, 3, dtype=torch.uint8, device=self.device)
        for place, job in zip(tiles, jobs, strict=True):
            place.copy_(self._cut(job.image)[job.tile])
        rows = torch.tensor([job.row for job in jobs], device=self.device)
        self.caches.tiles[rows] = self.model.encode_tiles(kernels.normalize_tiles(tiles, self.model.dtype))

    def _cut(self, image: PreparedImage) -> Tensor:
        """All tiles of a picture; the last one cut is kept, since a picture's tiles may be spread over steps."""
        if self._last_cut is None or self._last_cut[0] != image.digest:
            pixels = torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).to(self.device)
            pixels = pixels.view(image.height, image.width, 3)
            size = self.config.model.vision.image_size
            tiles = kernels.cut_tiles(pixels, image.columns, image.rows, image.has_thumbnail, size)
            self._last_cut = image.digest, tiles
        return self._last_cut[1]

    def _forward(self, batch: StepBatch) -> Tensor:
        """Embed tokens and picture slots and run the decoder: (T, C)."""
        x = self.model.decoder.embedding(batch.token_ids)
        if batch.image_positions.numel():
            x[batch.image_positions] = self.caches.tiles.flatten(0, 1)[batch.image_rows]
        return self.model.decoder(x, self.caches.k, self.caches.v, batch.attention)

    def _sample(self, batch: StepBatch, hidden: Tensor) -> dict[int, Sampled]:
        if not batch.sampled_ids:
            self._synchronize()
            return {}
        states = [self._states[sequence_id] for sequence_id in batch.sampled_ids]
        samples = sample(self.model.decoder.logits(hidden[batch.last]), states)
        results: dict[int, Sampled] = {}
        token_ids = samples.token_ids.tolist()
        for sequence_id, state, token_id, logprob in zip(
            batch.sampled_ids, states, token_ids, samples.logprobs, strict=True
        ):
            state.append(token_id)
            results[sequence_id] = Sampled(token_id, logprob, state.error)
        return results
