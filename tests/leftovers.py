"""What a test session leaves behind: files, shared memory, processes. Whatever is found fails the session.

Temporary files of the session and its children go to a folder of its own, which is looked at and removed at the end.
A process is the session's if it has the session's mark in its environment, or if it is an orphan that this very
interpreter's path started meanwhile: decoder workers get no environment.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

_MARK = "TILEWISE_TEST_SESSION"
_PROC, _SHARED_MEMORY = Path("/proc"), Path("/dev/shm")
# pytest's own, which keeps what failed tests wrote. It is short, since a socket's path has 107 characters at most.
_PYTESTS = "t"
# What other packages keep for their next start, once and not with every test.
_CACHES = ("torchinductor_", "torchelastic_", "gradio")
# What notices by itself that its parent has gone may take so long on a busy machine.
_GRACE_S = 60.0


class Leftovers:
    """Looks around at the session's start, and again at its end."""

    def __init__(self, grace_s: float = _GRACE_S) -> None:
        """Begin: give the session a mark and a folder for its temporary files."""
        self._grace_s = grace_s
        self._mark = uuid.uuid4().hex
        os.environ[_MARK] = self._mark
        self._started_at = time.time()
        self.folder = Path(tempfile.mkdtemp(prefix="tw-"))
        os.environ["TMPDIR"] = str(self.folder)
        tempfile.tempdir = None
        self.pytests = self.folder / _PYTESTS
        self._shared_memory = set(_list(_SHARED_MEMORY))

    def find(self) -> list[str]:
        """What is left now; processes are given time to end by themselves, and are then ended."""
        deadline = time.monotonic() + self._grace_s
        while (processes := self._find_processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in processes:
            _kill(pid)
        files = [path for path in _list(self.folder) if path != self.pytests and not path.name.startswith(_CACHES)]
        shared = set(_list(_SHARED_MEMORY)) - self._shared_memory
        found = [f"process {pid}: {command}" for pid, command in processes.items()]
        return [*found, *(f"file {path}" for path in files), *(f"shared memory {path}" for path in sorted(shared))]

    def remove(self) -> None:
        """Remove the session's folder, and with it what tests wrote; `--basetemp` keeps that elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_processes(self) -> dict[int, str]:
        """The commands of the session's processes, this one and those above it not counted."""
        own = set(_list_ancestors())
        pids = (int(path.name) for path in _list(_PROC) if path.name.isdecimal())
        return {pid: _read_command(pid) for pid in pids if pid not in own and self._is_of_session(pid)}

    def _is_of_session(self, pid: int) -> bool:
        try:
            folder = _PROC / str(pid)
            if folder.stat().st_uid != os.getuid() or _read_state(pid)[0] == "Z":
                return False
            if f"{_MARK}={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return True
            is_orphan, is_new = _read_state(pid)[1] == 1, folder.stat().st_mtime > self._started_at
            return is_orphan and is_new and _read_command(pid).startswith(sys.executable)
        except OSError:  # it has ended, or is none of ours
            return False


def _list(folder: Path) -> Iterable[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _list_ancestors() -> Iterable[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        pid = _read_state(pid)[1] if (_PROC / str(pid)).exists() else 0


def _read_state(pid: int) -> tuple[str, int]:
    """The state of a process and its parent's id, from behind its name, which may hold anything."""
    state, parent, *_ = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return state, int(parent)


def _read_command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
