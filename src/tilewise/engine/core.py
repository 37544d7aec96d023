"""The loop of an engine: receive, schedule, run, emit; and the building of one from a checkpoint.

A failing step ends the requests in it with an error and leaves the engine alive. Every accepted request ends in
exactly one output with a finish reason.
"""

import logging
import queue
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tilewise.cache.kv import create_caches
from tilewise.checkpoint.weights import load_weights
from tilewise.config import DeviceConfig, EngineConfig, ModelConfig, ResolvedConfig, resolve
from tilewise.engine.messages import Abort, Message, Shutdown, Submit
from tilewise.errors import CapacityError, ConfigError, TilewiseError
from tilewise.model.internvl import DTYPES, InternVL
from tilewise.plan import MemoryPlan, plan_memory
from tilewise.runner.runner import Runner
from tilewise.scheduler import Scheduler
from tilewise.steps import Budgets
from tilewise.types import FinishReason, Request, StepOutput

logger = logging.getLogger(__name__)


class EngineCore:
    """One scheduler, one runner, one thread at a time."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        """Join what plans steps and what runs them."""
        self.scheduler = scheduler
        self.runner = runner

    def run_forever(self, inbox: "queue.SimpleQueue[Message]", emit: Callable[[StepOutput], None]) -> None:
        """Work until told to shut down; sleep while there is nothing to do."""
        while True:
            while not self.scheduler.has_work or not inbox.empty():
                message = inbox.get()
                if isinstance(message, Shutdown):
                    return
                for output in self.receive(message):
                    emit(output)
            for output in self.step():
                emit(output)

    def receive(self, message: Submit | Abort) -> list[StepOutput]:
        """Take one message; what it ends at once is returned."""
        if isinstance(message, Abort):
            ended = self.scheduler.abort(message.request_id)
            return [ended] if ended else []
        try:
            self.scheduler.add(message.request)
        except TilewiseError as error:
            return [_error(message.request, str(error))]
        return []

    def step(self) -> list[StepOutput]:
        """Schedule, run and commit one step."""
        plan = self.scheduler.schedule()
        if plan is None:
            return []
        try:
            sampled = self.runner.run(plan)
        except Exception:
            logger.exception("a step with %d sequences failed", len(plan.chunks))
            return self.scheduler.fail(plan, "The engine failed on a step with this request; its log says why.")
        return self.scheduler.commit(plan, sampled)

    def stats(self) -> dict[str, float]:
        """Counters of the scheduler and seconds of each stage since the start."""
        scheduler = self.scheduler
        return {
            **scheduler.counters,
            **{f"{stage}_s": seconds for stage, seconds in self.runner.seconds.items()},
            "requests_running": len(scheduler.running),
            "requests_waiting": len(scheduler.waiting),
            "blocks": scheduler.pool.num_blocks,
            "blocks_held": scheduler.pool.num_held,
        }


def _error(request: Request, text: str) -> StepOutput:
    return StepOutput(request.request_id, finish_reason=FinishReason.ERROR, error=text)


def find_device(name: str) -> DeviceConfig:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Raises:
        ConfigError: no such device.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return DeviceConfig("cpu")
    kind, _, number = ("cuda" if name == "auto" else name).partition(":")
    count = torch.cuda.device_count()
    if kind != "cuda" or (number and not number.isdecimal()) or int(number or 0) >= count:
        raise ConfigError(f"device={name!r} is not here; choose auto, cpu or cuda:N with N < {count}.", param="device")
    return DeviceConfig("cuda", int(number or 0), torch.cuda.get_device_capability(int(number or 0)))


def build_core(folder: Path, model_config: ModelConfig, config: EngineConfig) -> tuple[EngineCore, ResolvedConfig]:
    """Load a checkpoint and allocate everything that its engine will ever hold.

    Raises:
        CheckpointError: the weights do not fit the configuration.
        CapacityError: the device cannot hold the model with one session beside it.
    """
    resolved = resolve(config, model_config, find_device(config.device))
    device = torch.device(resolved.device.name)
    plan = plan_memory(resolved)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        _check_weights_fit(plan)
    with device:
        model = InternVL(resolved)
    if resolved.load_format == "dummy":
        model.randomize()
    else:
        load_weights(folder, model.slots(), device, ignored=model.is_unused)
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    num_blocks = plan.count_blocks(resolved, free_bytes)
    resolved = _fit_session(resolved, num_blocks, is_explicit=config.session_len is not None)
    caches = create_caches(resolved, num_blocks, plan.num_tile_rows, DTYPES[resolved.dtype], device)
    budgets = Budgets(
        max_step_tokens=max(resolved.max_step_tokens, resolved.max_batch_size),
        max_step_tiles=resolved.max_step_tiles,
        max_sequences=resolved.max_batch_size,
        session_len=resolved.session_len,
        block_size=resolved.block_size,
        tokens_per_tile=model_config.tokens_per_tile,
        use_prefix_cache=resolved.use_prefix_cache,
    )
    scheduler = Scheduler(budgets, num_blocks, plan.num_tile_rows)
    return EngineCore(scheduler, Runner(model, caches, resolved)), resolved


def _check_weights_fit(plan: MemoryPlan) -> None:
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    if plan.weights > free_bytes:
        gib = 1 << 30
        raise CapacityError(
            f"The weights take {plan.weights / gib:.1f} GiB; {free_bytes / gib:.1f} of the device's "
            f"{total_bytes / gib:.1f} GiB are free. Free some or choose a larger device."
        )


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
