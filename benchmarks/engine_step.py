"""CPU time of one engine step without a model: scheduling, batch building, sampling bookkeeping, output.

    python benchmarks/engine_step.py [NUM_SEQUENCES]

Sequences decode with a 1,831-token prompt behind them. Prints a table for people and one JSON line.
"""

import json
import platform
import statistics
import sys
import time

import torch

from tilewise.runner.batch import build_batch, lay_out
from tilewise.scheduling.scheduler import Scheduler
from tilewise.scheduling.steps import Budgets, Sampled
from tilewise.types import GenerationConfig, Request

PROMPT_TOKENS = 1831
STEPS = 300


def main() -> None:
    num_sequences = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    block_size = 64
    budgets = Budgets(4096, 16, num_sequences, 4096, block_size, 256)
    scheduler = Scheduler(budgets, num_blocks=64 * num_sequences, num_tile_rows=16)
    for number in range(num_sequences):
        prompt = tuple(range(number, number + PROMPT_TOKENS))
        scheduler.add(Request(str(number), prompt, generation=GenerationConfig(max_new_tokens=2000)))
    stages: dict[str, list[float]] = {"schedule": [], "build": [], "commit": []}
    while len(stages["commit"]) < STEPS:
        clock = [time.perf_counter()]
        plan = scheduler.schedule()
        assert plan is not None
        clock.append(time.perf_counter())
        layout = lay_out(plan, block_size)
        build_batch(layout, torch.device("cpu"))
        clock.append(time.perf_counter())
        scheduler.commit(plan, {sequence_id: Sampled(7) for sequence_id in layout.sampled_ids})
        clock.append(time.perf_counter())
        if len(plan.decodes) == num_sequences and not plan.prefills:
            for stage, start, end in zip(stages, clock[:-1], clock[1:], strict=True):
                stages[stage].append(1e3 * (end - start))
    medians = {f"{stage}_ms": round(statistics.median(times), 3) for stage, times in stages.items()}
    medians["step_ms"] = round(statistics.median(map(sum, zip(*stages.values(), strict=True))), 3)
    for name, value in medians.items():
        print(f"{name:>12} {value:8.3f}")
    machine = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "engine_step", "sequences": num_sequences, **medians, **machine}))


if __name__ == "__main__":
    main()
