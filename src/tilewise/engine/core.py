"""The loop of an engine: receive, schedule, run, emit; and the building of one from a checkpoint.

On a GPU a step is launched before the one ahead of it is collected, so that the device never waits for the host. A
failing step ends the requests in it with an error and leaves the engine alive. Every accepted request ends in
exactly one output with a finish reason.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tilewise.cache.tensors import create_caches
from tilewise.checkpoint.weights import load_weights
from tilewise.config import DeviceConfig, EngineConfig, ModelConfig, ResolvedConfig, resolve
from tilewise.engine.messages import Abort, Inbox, Shutdown, Submit
from tilewise.engine.preparations import Preparations
from tilewise.errors import CapacityError, ConfigError, InputError, TilewiseError
from tilewise.inputs.text.grammar import Guide
from tilewise.inputs.text.guide_compiler import GuideCompiler
from tilewise.model.internvl import DTYPES, InternVL
from tilewise.plan import count_tile_work, plan_memory
from tilewise.runner.image_cutter import ImageCutter
from tilewise.runner.runner import Launch, Runner
from tilewise.scheduling.scheduler import Scheduler
from tilewise.scheduling.steps import Budgets, StepPlan
from tilewise.types import FinishReason, PreparedImage, Request, StepOutput

logger = logging.getLogger(__name__)

_GIB = 1 << 30
# Of the pictures that one step cuts itself: Pillow takes 5 ms a megapixel (one core, 2026-11-30).
_MAX_STEP_PIXELS = 4_000_000
T = TypeVar("T")


class EngineCore:
    """One scheduler, one runner, one thread at a time; and what is prepared beside it."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        cut: Callable[[PreparedImage], Tensor],
        compile_form: Callable[[str], Guide],
        *,
        looks_ahead: bool = False,
    ) -> None:
        """Join what plans steps, what runs them, and what is called on other threads for requests to come."""
        self.scheduler = scheduler
        self.runner = runner
        self.looks_ahead = looks_ahead
        self._cut, self._compile_form = cut, compile_form
        self._cuts = Preparations[bytes, Tensor]("tilewise-cut", self._wake)
        self._forms = Preparations[str, Guide]("tilewise-form", self._wake)
        self._inbox: Inbox | None = None
        self._is_idle = False
        self._in_flight: tuple[StepPlan, Launch] | None = None

    @property
    def has_work(self) -> bool:
        """Something waits or runs, or a step is on its way."""
        return self.scheduler.has_work or self._in_flight is not None

    def run_forever(self, inbox: Inbox, emit: Callable[[Sequence[StepOutput]], None]) -> None:
        """Work until told to shut down; sleep while there is nothing to do. A step's outputs are emitted at once.

        None in the inbox says that something was prepared.
        """
        self._inbox = inbox
        while True:
            if not self.has_work:
                self.scheduler.check_integrity()
            while self._is_idle or not self.has_work or not inbox.empty():
                message = inbox.get()
                self._is_idle = False
                if isinstance(message, Shutdown):
                    return
                outputs = [] if message is None else self.receive(message)
                if outputs:
                    emit(outputs)
            if outputs := self.step():
                emit(outputs)

    def receive(self, message: Submit | Abort) -> list[StepOutput]:
        """Take one message; what it ends at once is returned."""
        if isinstance(message, Abort):
            self._forms.cancel(message.request_id)
            ended = self.scheduler.abort(message.request_id)
            return self._forget([ended] if ended else [])
        refused: list[StepOutput] = []
        for request in message.requests:
            try:
                self._check_ids(request)
                form = request.generation.response_format
                self.scheduler.add(request, is_ready=form is None)
                if form is not None:
                    self._forms.start(request.request_id, partial(self._compile_form, form), request.namespace)
            except TilewiseError as error:
                refused.append(StepOutput(request.request_id, finish_reason=FinishReason.ERROR, error=str(error)))
        return refused

    def step(self) -> list[StepOutput]:
        """Launch the next step, then commit the one before it; or this one, where nothing is to be gained.

        Of a step that is awaited only the results are taken, so that messages are received before the next one.
        """
        if self._in_flight is not None and self._in_flight[0].is_awaited:
            return self._forget(self._collect())
        outputs = self._take_prepared()
        plan = self.scheduler.schedule()
        self._start_cuts()
        if plan is None and self._in_flight is None:
            self._is_idle = self._cuts.is_busy or self._forms.is_busy
            return self._forget(outputs if self._is_idle else outputs + self._end_stuck())
        launch = None if plan is None else self._try(plan, lambda: self.runner.launch(plan))
        outputs += self._collect()
        if plan is not None:
            if launch is None:
                outputs += self._fail(plan)
            else:
                self._in_flight = plan, launch
        return self._forget(outputs if self.looks_ahead else outputs + self._collect())

    def _wake(self) -> None:
        if self._inbox is not None:
            self._inbox.put(None)

    def _end_stuck(self) -> list[StepOutput]:
        """Nothing can be computed, and nothing is awaited: that must not be. End one request, so that others go on."""
        request_id = self.scheduler.find_oldest()
        if request_id is None:
            return []
        logger.error("requests wait and nothing can be done; the oldest one is given up")
        return self.scheduler.refuse(request_id, "The engine could not go on with this request; its log says why.")

    def _forget(self, outputs: list[StepOutput]) -> list[StepOutput]:
        """Drop what was prepared for those that have ended."""
        for output in outputs:
            if output.finish_reason is not None:
                self.runner.guides.pop(output.request_id, None)
        if not self.has_work:
            self.scheduler.cuts.keep(frozenset())
            self._start_cuts()
        return outputs

    def _take_prepared(self) -> list[StepOutput]:
        """Hand what was prepared to scheduler and runner; who waited for what failed hears of it."""
        outputs: list[StepOutput] = []
        for digest, tiles in self._cuts.take_ended():
            if isinstance(tiles, Exception):
                outputs += self.scheduler.refuse_image(digest, "A picture could not be cut; the engine's log says why.")
            elif self.scheduler.cuts.mark_ready(digest):
                self.runner.cut_images[digest] = tiles
        for request_id, guide in self._forms.take_ended():
            if isinstance(guide, Exception):
                known = isinstance(guide, TilewiseError)
                text = str(guide) if known else "The answer could not be held to its response_format."
                outputs += self.scheduler.refuse(request_id, text)
            elif self.scheduler.mark_ready(request_id):
                self.runner.guides[request_id] = guide
        return outputs

    def _start_cuts(self) -> None:
        """Begin what the scheduler wants cut, and drop what it needs no more."""
        for digest in self.scheduler.cuts.take_dropped():
            self._cuts.cancel(digest)
            self.runner.cut_images.pop(digest, None)
        for image in self.scheduler.cuts.take_wanted():
            self._cuts.start(image.digest, partial(self._cut, image))

    def _collect(self) -> list[StepOutput]:
        if self._in_flight is None:
            return []
        (plan, launch), self._in_flight = self._in_flight, None
        sampled = self._try(plan, lambda: self.runner.collect(launch))
        return self._fail(plan) if sampled is None else self.scheduler.commit(plan, sampled)

    def _try(self, plan: StepPlan, work: Callable[[], T]) -> T | None:
        """Do a part of a step; None where it fails."""
        try:
            return work()
        except torch.AcceleratorError:  # the device is lost to this process: only a new one helps
            raise
        except Exception:
            logger.exception("a step with %d sequences failed", len(plan.chunks))
            return None

    def _fail(self, plan: StepPlan) -> list[StepOutput]:
        return self.scheduler.fail(plan, "The engine failed on a step with this request; its log says why.")

    def close(self) -> None:
        """Give back the device's memory."""
        self._cuts.close()
        self._forms.close()
        del self._cut
        is_cuda = self.runner.device.type == "cuda"
        del self.runner
        if is_cuda:
            torch.cuda.empty_cache()

    def _check_ids(self, request: Request) -> None:
        """Refuse ids that no table of the model has, before a kernel reads beyond one."""
        num_tokens, generation = self.runner.config.model.decoder.num_logits, request.generation
        named = {
            "token_ids": request.token_ids,
            "stop_token_ids": request.stop_token_ids,
            "bad_token_ids": generation.bad_token_ids,
            "logit_bias": [token_id for token_id, _ in generation.logit_bias],
        }
        for name, ids in named.items():
            if ids and not (min(ids) >= 0 and max(ids) < num_tokens):
                raise InputError(f"{name} holds ids outside [0, {num_tokens}).", param=name)

    def stats(self) -> dict[str, float]:
        """Counters of the scheduler and seconds of each stage since the start."""
        scheduler = self.scheduler
        return {
            **scheduler.counters,
            **{f"{stage}_s": seconds for stage, seconds in self.runner.seconds.items()},
            "requests_running": len(scheduler.running),
            "requests_waiting": len(scheduler.waiting) + len(scheduler.unready),
            "blocks": scheduler.kv.pool.num_blocks,
            "blocks_held": scheduler.kv.pool.num_held,
        }


def find_device(name: str) -> DeviceConfig:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Raises:
        ConfigError: no such device.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return DeviceConfig("cpu")
    kind, _, number = ("cuda" if name == "auto" else name).partition(":")
    count = torch.cuda.device_count()
    if kind != "cuda" or not (number or "0").isdecimal() or int(number or 0) >= count:
        known = f"auto, cpu or cuda:N with N < {count}" if count else "auto or cpu: there is no GPU here"
        raise ConfigError(f"device={name!r} is not here; choose {known}.", param="device")
    return DeviceConfig("cuda", int(number or 0), torch.cuda.get_device_capability(int(number or 0)))


def build_core(
    folder: Path, model_config: ModelConfig, config: EngineConfig, *, is_served: bool = False
) -> tuple[EngineCore, ResolvedConfig]:
    """Load a checkpoint and allocate everything that its engine will ever hold.

    Where it `is_served` to several clients, the first form of an answer finds its compiler ready.

    Raises:
        CheckpointError: the weights do not fit the configuration.
        CapacityError: the device cannot hold the model with one session beside it.
    """
    resolved = resolve(config, model_config, find_device(config.device))
    device = torch.device(resolved.device.name)
    plan = plan_memory(resolved)
    if plan.weights > (free_bytes := _count_free_bytes(device)):
        raise CapacityError(
            f"The weights take {plan.weights / _GIB:.1f} GiB in {resolved.dtype}; {device} has "
            f"{free_bytes / _GIB:.1f} GiB. Free some, or choose a larger device or a smaller model."
        )
    with device:
        model = InternVL(resolved)
    if resolved.load_format == "dummy":
        model.randomize()
    else:
        load_weights(folder, model.slots(), device, ignored=model.is_unused)
    free_bytes = _count_free_bytes(device)
    num_blocks = plan.count_blocks(resolved, free_bytes)
    resolved = _fit_session(resolved, num_blocks, is_explicit=config.session_len is not None)
    needed = plan.image_cache + num_blocks * plan.kv_block
    try:
        if device.type == "cuda" and needed + plan.workspace + plan.graphs > free_bytes:
            raise torch.OutOfMemoryError
        caches = create_caches(resolved, num_blocks, plan.num_tile_rows, DTYPES[resolved.dtype], device)
    except RuntimeError:
        raise CapacityError(
            f"KV and picture caches take {needed / _GIB:.1f} GiB, more than the device has left beside the model; "
            "lower kv_cache_bytes, image_cache_bytes or max_prefill_tiles."
        ) from None
    budgets = Budgets(
        max_step_tokens=resolved.max_step_tokens,
        max_step_tiles=resolved.max_step_tiles,
        max_sequences=resolved.max_batch_size,
        session_len=resolved.session_len,
        block_size=resolved.block_size,
        tokens_per_tile=model_config.tokens_per_tile,
        use_prefix_cache=resolved.use_prefix_cache,
        max_busy_work=resolved.max_busy_work,
        tile_work=count_tile_work(model_config),
        max_step_pixels=_MAX_STEP_PIXELS,
        max_cut_tiles=4 * resolved.max_step_tiles,
    )
    scheduler = Scheduler(budgets, num_blocks, plan.num_tile_rows)
    runner = Runner(model, caches, resolved)
    compiler = GuideCompiler(folder, model_config.decoder.vocab_size)
    if is_served:
        compiler.warm_up()
    cutter = ImageCutter(device, model_config.vision.image_size)
    return EngineCore(scheduler, runner, cutter.cut, compiler.compile, looks_ahead=device.type == "cuda"), resolved


def _count_free_bytes(device: torch.device) -> int:
    """Bytes that are free on a GPU; of the host, all there are, since its caches give way."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such call on Windows
        return sys.maxsize


def _fit_session(config: ResolvedConfig, num_blocks: int, *, is_explicit: bool) -> ResolvedConfig:
    """Lower a session length that nobody asked for to what the cache holds."""
    capacity = num_blocks * config.block_size
    if capacity >= config.session_len:
        return config
    if is_explicit or capacity == 0:
        raise CapacityError(
            f"The KV cache holds {capacity} tokens, less than session_len={config.session_len}; lower session_len "
            "or max_prefill_token_num, or raise cache_max_entry_count or kv_cache_bytes."
        )
    logger.warning("session_len lowered from %d to %d: the KV cache holds no more", config.session_len, capacity)
    return replace(config, session_len=capacity)
