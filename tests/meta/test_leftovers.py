"""The look around at a session's end sees what was left, and ends it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leftovers import Leftovers

SLEEP = "import time; print(flush=True); time.sleep(600)"
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are read from Linux' /proc")


@pytest.fixture
def leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Leftovers]:
    """A session within this one, which gets its own environment back."""
    for name in ("TMPDIR", "TILEWISE_TEST_SESSION"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setattr(tempfile, "tempdir", None)
    leftovers = Leftovers(grace_s=0.0)
    yield leftovers
    leftovers.remove()


def test_a_session_that_leaves_nothing_finds_nothing(leftovers: Leftovers) -> None:
    with tempfile.TemporaryDirectory():
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert leftovers.find() == []


def test_a_file_and_a_process_that_are_left_are_named_and_the_process_is_ended(leftovers: Leftovers) -> None:
    file = Path(tempfile.mkdtemp(prefix="left-"))
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = leftovers.find()
        assert process.wait() < 0
    assert [line.partition(":")[0] for line in found] == [f"process {process.pid}", f"file {file}"]


def test_an_orphan_without_the_sessions_environment_is_found(leftovers: Leftovers) -> None:
    start = (
        "import sys\n"
        "from subprocess import DEVNULL, Popen\n"
        f"print(Popen([sys.executable, '-c', {SLEEP!r}], env={{}}, stdout=DEVNULL, stderr=DEVNULL).pid)"
    )
    parent = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True, env={})
    found = leftovers.find()
    assert any(line.startswith(f"process {int(parent.stdout.split()[0])}:") for line in found)
