"""`benchmarks/serving.py` runs where there is no GPU; what it says is for programs in its last line."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from tests.processes import run_command


def test_the_last_line_holds_the_chosen_parts_and_what_they_ran_with(repository: Path) -> None:
    options = ["--parts", "again", "--bars", "bf16", "max_batch_size=2"]
    env = {**os.environ, "PYTHONPATH": str(repository / "src"), "PYTHONUTF8": "1"}
    done = run_command([sys.executable, "benchmarks/serving.py", "--quick", *options], env=env, cwd=repository)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said["figures"]) == set(said["compared"]) == {"again.first_token_ms"}
    assert said["options"] == {"max_batch_size": 2}
    assert "the same picture again: first token" in done.stdout


def test_a_part_that_fails_is_named_and_the_others_figures_stand(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    serving = importlib.import_module("serving")

    def fail() -> dict[str, float]:
        raise RuntimeError("no room")

    figures, failed = serving.run_parts({"mixed": fail, "seed": lambda: {"first_token_ms": 3.0}})
    assert figures == {"seed.first_token_ms": 3.0}
    assert failed == {"mixed": "RuntimeError: no room"}
