"""What a step of every decoder and tower of the family launches, counted on a GPU that is pretended."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from tests.processes import run_command

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
DECODER_LAYER = {"multiply_share": 4, "rotate_and_write": 1, "attend_split": 1, "add_and_normalize": 2}
TOWER_LAYER = {"torch linear": 4, "torch attention": 1, "add_and_gelu": 1, "add_and_normalize": 2}


@needs_triton
def test_a_layer_of_every_decoder_is_eight_launches_and_of_every_tower_at_most_nine(repository: Path) -> None:
    command = [sys.executable, "benchmarks/launches.py", "--rows", "1,64"]
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    done = run_command(command, cwd=repository, env=environment, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    found = {(result["shape"], result["rows"]): result["layer"] for result in line["results"]}
    assert found.pop(("300m", 1)) == TOWER_LAYER
    assert found.pop(("6b", 1)) == {**TOWER_LAYER, "normalize": 1}
    assert {"qwen2-0.5b", "qwen2.5-72b", "qwen3-0.6b", "qwen3-32b", "internlm2-20b"} <= {name for name, _ in found}
    assert all(layer == DECODER_LAYER for layer in found.values()), found
    alone = [result for result in line["results"] if result["rows"] == 1 and result["shape"] not in ("300m", "6b")]
    assert all(result["dependent_a_layer"] == 8 for result in alone), "each starts in the end of the one before it"
