"""What tests start ends with them, and Ctrl-C works wherever the suite was started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.processes import end_group, run_command, start_process

# A command that starts another one, which has the pipe of the first argument too; neither ever ends.
PARENT = """
import subprocess, sys, threading
pipe = int(sys.argv[1])
child = "import os, sys, threading; os.write(int(sys.argv[1]), b'begun'); threading.Event().wait()"
subprocess.run([sys.executable, "-c", child, str(pipe)], pass_fds=[pipe])
"""
INTERRUPTED = """
import signal, subprocess, sys
import pytest

def test_ctrl_c_is_heard_here_and_in_a_child() -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    child = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) != signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", child]).returncode == 0
"""


class Pipe:
    """Shows when the grandchild has begun, and when every process that could write is gone."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.command = [sys.executable, "-c", PARENT, str(self.writing)]
        self._reading = os.fdopen(reading, "rb", buffering=0)

    def wait_for_grandchild(self) -> None:
        assert self._reading.read(5) == b"begun"

    def read_all(self) -> bytes:
        os.close(self.writing)
        with self._reading:
            return self._reading.read()


def test_what_a_process_started_ends_with_the_block() -> None:
    pipe = Pipe()
    with start_process(pipe.command, pass_fds=[pipe.writing]) as process:
        pipe.wait_for_grandchild()
    assert pipe.read_all() == b""
    assert process.returncode == -signal.SIGTERM


def test_what_does_not_hear_the_signal_to_end_is_killed() -> None:
    deaf = "import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    command = [sys.executable, "-c", f"{deaf}; threading.Event().wait()"]
    with start_process(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        end_group(process, grace_s=0.1)
        assert process.returncode == -signal.SIGKILL


def test_a_block_that_fails_ends_what_it_started() -> None:
    pipe = Pipe()

    def fail() -> None:
        with start_process(pipe.command, pass_fds=[pipe.writing]):
            pipe.wait_for_grandchild()
            raise RuntimeError("the test failed")

    with pytest.raises(RuntimeError, match="the test failed"):
        fail()
    assert pipe.read_all() == b""


def test_a_command_that_does_not_end_takes_along_what_it_started() -> None:
    begun, limit_s = b"", 0.5
    while not begun:  # the grandchild too must have been started within the limit
        pipe = Pipe()
        with pytest.raises(subprocess.TimeoutExpired):
            run_command(pipe.command, pass_fds=[pipe.writing], timeout_s=limit_s)
        begun = pipe.read_all()
        limit_s *= 2
    assert begun == b"begun"


def test_a_suite_that_is_started_with_sigint_ignored_hears_it(tmp_path: Path) -> None:
    (tmp_path / "test_interrupted.py").write_text(INTERRUPTED)
    pytest_command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "src")))
    done = run_command(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *pytest_command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout
