"""Schemathesis reads the server's own document and tries to make it fail or answer otherwise than documented."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.running import KEYS, RunningServer, run_server
from tests.processes import run_command

RUN_S = 1800.0


@pytest.fixture(scope="module")
def brief_server() -> Iterator[RunningServer]:
    """What has no stated length is answered briefly."""
    with run_server("--session-len", "256", keys=KEYS) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_every_answer_is_as_documented_and_none_a_fault(brief_server: RunningServer, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{brief_server.url}/openapi.json"),
        *("-H", f"Authorization: Bearer {KEYS[0]}", "--checks", "all", "--max-examples", "50", "--seed", "1"),
        *("--request-timeout", "300"),  # how busy the machine is says nothing of the server
        # What fields say of each other, and a conversation's order of turns, are not in the document.
        *("--exclude-checks", "positive_data_acceptance"),
    ]
    done = run_command(command, cwd=tmp_path, timeout_s=RUN_S)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    brief_server.wait_until_idle()
    assert not [line for line in brief_server.lines if line.get("level") == "ERROR"]
