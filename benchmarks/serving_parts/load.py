"""The parts that look into the pipeline's engine: its stages in the mixed batch, and its memory."""

import time
from dataclasses import dataclass, field, fields
from typing import Any

from serving_parts.bars import Figures
from serving_parts.doors import PipelineDoor, measure_mixed, prepare_mixed
from serving_parts.work import QUESTION, Pictures, Work
from tilewise import GenerationConfig, Pipeline, TilewiseError
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.plan import Fit, plan_memory
from tilewise.types import Request

_MIB = 1 << 20
_COUNTED = ("tower_s", "prefill_s", "decode_s", "preemptions")


@dataclass(frozen=True, slots=True)
class TimedBuilder(RequestBuilder):
    """A builder that notes the CPU time of every request, on whichever thread it was built."""

    cpu_s: list[float] = field(default_factory=list[float])

    def build(self, *args: Any, **options: Any) -> Request:
        """Build, and note the time."""
        started_at = time.thread_time()
        request = RequestBuilder.build(self, *args, **options)  # slots leave no bare super()
        self.cpu_s.append(time.thread_time() - started_at)
        return request


def measure_mixed_stages(pipe: Pipeline, work: Work, pictures: Pictures) -> dict[str, float]:
    """The mixed batch, with the engine's own seconds of each stage and the CPU's for preparing."""
    door, own = PipelineDoor(pipe), pipe.builder
    requests = prepare_mixed(door, work, pictures)
    timed = TimedBuilder(**{name.name: getattr(own, name.name) for name in fields(own)})
    before = pipe.engine.client.stats()
    pipe.builder = timed
    try:
        figures = measure_mixed(door, work, requests)
    finally:
        pipe.builder = own
    after = pipe.engine.client.stats()
    counted = {name: after[name] - before[name] for name in _COUNTED if name in after}
    return {**figures, **counted, "prepare_cpu_s": sum(timed.cpu_s)}


def read_beside_bytes(pipe: Pipeline) -> int:
    """What is taken of the pipeline's GPU beside what torch reserved: the driver, libraries, others; 0 without one."""
    device = pipe.engine.resolved.device
    if device.type == "cpu":
        return 0
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(device.name)
    return total_bytes - free_bytes - torch.cuda.memory_reserved(device.name)


def measure_memory(pipe: Pipeline, work: Work, pictures: Pictures, beside_bytes: int) -> Figures:
    """Ask about large pictures all at once; then the peaks of all that this process did, against the plan.

    `beside_bytes` is what `read_beside_bytes` said after loading.
    """
    prompts = [(QUESTION, picture) for picture in pictures.noise([work.large_size] * work.large_requests)]
    generation = GenerationConfig(max_new_tokens=work.large_tokens, ignore_eos=True)
    figures: Figures = {"requests": len(prompts)}
    num_answered, started_at = 0, time.perf_counter()
    try:
        for piece in pipe.stream_infer(prompts, generation):
            num_answered += piece.finish_reason is not None
    except TilewiseError as error:
        figures["error"] = str(error)
    figures |= {"seconds": time.perf_counter() - started_at, "unanswered": len(prompts) - num_answered}
    return figures | _compare_with_plan(pipe, beside_bytes)


def _compare_with_plan(pipe: Pipeline, beside_bytes: int) -> Figures:
    resolved = pipe.engine.resolved
    if resolved.device.type == "cpu":
        return {}
    import torch

    num_blocks = int(pipe.engine.client.stats()["blocks"])
    planned = Fit(resolved, plan_memory(resolved), num_blocks, 0, {}).total_bytes
    allocated = torch.cuda.max_memory_allocated(resolved.device.name)
    reserved = torch.cuda.max_memory_reserved(resolved.device.name)
    return {
        "planned_mib": planned // _MIB,
        "allocated_mib": allocated // _MIB,
        "reserved_mib": reserved // _MIB,
        "beside_mib": beside_bytes // _MIB,
        "allocated_percent": 100 * (allocated + beside_bytes) / planned,
        "reserved_percent": 100 * (reserved + beside_bytes) / planned,
    }
