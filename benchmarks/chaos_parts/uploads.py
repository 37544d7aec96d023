"""Row 43: what one stranger can leave on the chat page's disk: pictures until refused, with the page open and without.

The page runs in this process with its default limits, over no server.
"""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx

from chaos_parts.row import Row
from tilewise.client import APIClient

MIB = 1 << 20
PICTURE = b"\x89PNG\r\n\x1a\n".ljust(16 * MIB, b"x")
NO_PICTURE = bytes(16 * MIB)
MOST_UPLOADS = 14  # of 16 MiB: what one stranger had kept before there were limits
GRACE_S, GUEST_S = 0.5, 2.0  # shorter than the page's own, so that their end is seen
PATIENCE_S = 60.0


class Disk:
    """Watches a folder on a thread; what was there at first does not count."""

    def __init__(self, folder: Path) -> None:
        """Start with `with`."""
        self._folder = folder
        self._own = self._measure()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mib = 0.0

    def __enter__(self) -> "Disk":
        """Watch from here on."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no longer."""
        self._is_over.set()
        self._thread.join()

    def now_mib(self) -> float:
        """What lies there now."""
        return (self._measure() - self._own) / MIB

    def _measure(self) -> int:
        total = 0
        for folder, _, names in os.walk(self._folder):
            for name in names:
                try:
                    total += os.stat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # taken away meanwhile
                    continue
        return total

    def _watch(self) -> None:
        while not self._is_over.wait(0.005):
            self.peak_mib = max(self.peak_mib, self.now_mib())


def upload(http: httpx.Client, data: bytes) -> int:
    """The status that an upload gets."""
    return http.post("gradio_api/upload", files={"files": ("a.png", data)}).status_code


def wait_s(condition: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    started_at = time.monotonic()
    while not condition() and time.monotonic() - started_at < PATIENCE_S:
        time.sleep(0.01)
    return time.monotonic() - started_at


def attack_within_session(http: httpx.Client, disk: Disk) -> list[Row]:
    """A stranger who has the page open, uploads until refused, and leaves."""
    http.get("/")
    with http.stream("GET", "gradio_api/heartbeat/stranger") as heartbeat:
        lines = heartbeat.iter_lines()  # its end would close the connection
        next(lines)
        statuses = [upload(http, PICTURE) for _ in range(MOST_UPLOADS)]
        junk = [upload(http, NO_PICTURE) for _ in range(2)]
    peak_mib = disk.peak_mib
    ended_s = wait_s(lambda: disk.now_mib() == 0)
    return [
        Row(43, "kept within a session, MiB", peak_mib, "", most=64),
        Row(43, "pictures taken within a session", statuses.count(200), "", most=4),
        Row(43, "files taken that are no pictures", junk.count(200), "", most=0),
        Row(43, "kept after the session, MiB", disk.now_mib(), "", most=0),
        Row(43, f"until then, with a grace of {GRACE_S} s, s", ended_s, "", most=GRACE_S + 5),
    ]


def attack_without_session(http: httpx.Client, disk: Disk) -> list[Row]:
    """A stranger who never opens the page."""
    disk.peak_mib = 0.0
    for _ in range(MOST_UPLOADS):
        upload(http, PICTURE)
    peak_mib = disk.peak_mib
    ended_s = wait_s(lambda: disk.now_mib() == 0)
    return [
        Row(43, "kept without a session, MiB", peak_mib, "", most=64),
        Row(43, "kept minutes later, MiB", disk.now_mib(), "", most=0),
        Row(43, f"until then, with {GUEST_S} s for guests, s", ended_s, "", most=GUEST_S + 5),
    ]


def measure() -> list[Row]:
    """Open a page, attack it, and close it. Takes less than 20 s."""
    with tempfile.TemporaryDirectory(prefix="tilewise-hostile-") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            return _measure_in(Path(folder))
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def _measure_in(folder: Path) -> list[Row]:
    from tilewise.page.app import create_page, launch_page
    from tilewise.page.uploads import UploadLimits

    blocks = create_page(APIClient("http://127.0.0.1:9"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    limits = replace(UploadLimits(), grace_s=GRACE_S, guest_s=GUEST_S)
    address = launch_page(blocks, "127.0.0.1", port, upload_limits=limits)
    try:
        with Disk(folder) as disk:
            with httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE_S) as http:
                rows = attack_within_session(http, disk)
            with httpx.Client(base_url=address, trust_env=False, timeout=PATIENCE_S) as http:
                rows += attack_without_session(http, disk)
                upload(http, PICTURE)
            blocks.close(verbose=False)
            return [*rows, Row(43, "kept after the page's end, MiB", disk.now_mib(), "", most=0)]
    finally:
        blocks.close(verbose=False)
