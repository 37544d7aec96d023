"""How tests start processes: each one leads a group of its own, and the whole group ends with the block.

So a test that fails, or that runs into a time limit, leaves nothing running: neither the command that it started nor
what that command has started. A test that claims that a command leaves nothing behind must look inside the block.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Tests wait for states, and at most this long: enough for a small machine that is busy with other work. It is only
# spent where a test fails, and lies below pytest's own limit, so that the failure names what did not come.
PATIENCE_S = 300.0
# What has been told to end, or has lost its parent, may take so long before it is killed.
_GRACE_S = 60.0


@contextmanager
def start_process(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a command in a session of its own; at the end it is told to end, and what is left of its group is killed.

    `options` are those of `subprocess.Popen`.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[Any], grace_s: float = _GRACE_S) -> None:
    """Let a command, and what it started, end in order, which takes its files along; then kill its group."""
    deadline = time.monotonic() + grace_s
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    while has_group(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    kill_group(process)


def has_group(process: subprocess.Popen[Any]) -> bool:
    """Whether anything is left of the group that a started process leads."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # QUIRK: macOS' answer where only unreaped members are left
        return False
    return True


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
