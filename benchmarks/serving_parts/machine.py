"""Facts of this process and its machine: how old it is, what memory it took, what runs where."""

import os
import platform
import re
import subprocess
import threading
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tilewise import __version__

_IMPORTED_AT = time.perf_counter()
_STATUS = Path("/proc/self/status")
_STAT = Path("/proc/self/stat")
_START_FIELD = 19  # of those behind the name: start time, in ticks since boot


def process_age_s() -> float:
    """Seconds since this process was started; since this module was imported where the system does not tell."""
    since_import = time.perf_counter() - _IMPORTED_AT
    try:
        ticks = int(_STAT.read_text().rpartition(")")[2].split()[_START_FIELD])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return since_import
    return age if ticks and age >= since_import else since_import


class HostMemoryWatch:
    """Samples this process's anonymous memory on a thread, from entry to exit. Nothing where there is no /proc."""

    def __init__(self, interval_s: float = 0.01) -> None:
        """Start with `with`."""
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="host-memory", daemon=True)
        self.anonymous_mib = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        """Peaks in MiB, of those that the system tells."""
        peaks = {"host_anonymous_mib": self.anonymous_mib, "host_resident_mib": _read_status_mib("VmHWM")}
        return {name: mib for name, mib in peaks.items() if mib}

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self.anonymous_mib = max(self.anonymous_mib, _read_status_mib("RssAnon"))


def _read_status_mib(name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) >> 10 if found else 0


def describe_machine(device: str) -> dict[str, Any]:
    """The device by its name, the versions that matter, and the commit if this is a checkout."""
    import torch

    is_cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {
            "tilewise": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _find_version("triton"),
            "cudnn": torch.backends.cudnn.version() if is_cuda else None,
        },
        "commit": _find_commit(),
    }


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _find_commit() -> str | None:
    """The checkout's commit, with `-dirty` where files differ from it."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
