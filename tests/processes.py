"""How tests start processes: each one leads a group of its own, and the whole group ends with the block.

So a test that fails, or that runs into a time limit, leaves nothing running: neither the command that it started nor
what that command has started. A test that claims that a command leaves nothing behind must look inside the block.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Tests wait for states, and at most this long: enough for a small machine that is busy with other work. It is only
# spent where a test fails, and lies below pytest's own limit, so that the failure names what did not come.
PATIENCE_S = 300.0


@contextmanager
def start_process(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a command in a session of its own; at the end kill what is left of its group, and reap the command.

    `options` are those of `subprocess.Popen`.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            kill_group(process)


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill what still runs of the group that a started process leads, and reap the process."""
    # QUIRK: where only unreaped members are left, macOS denies permission.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_command(
    command: Sequence[str | Path],
    *,
    input: str | None = None,
    check: bool = False,
    timeout_s: float = PATIENCE_S,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its status and its output, in UTF-8.

    `options` are those of `subprocess.Popen`. With `check`, a status other than 0 fails the test.

    Raises:
        subprocess.TimeoutExpired: it took longer; the command and what it started are killed.
    """
    if input is not None:
        options["stdin"] = subprocess.PIPE
    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with start_process(command, **captured, **options) as process:
        out, err = process.communicate(input, timeout=timeout_s)
    assert process.returncode == 0 or not check, err
    return subprocess.CompletedProcess(command, process.returncode, out, err)
