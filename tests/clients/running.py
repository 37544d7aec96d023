"""A server as users start it: a process of its own, by the command line, with the embedded model."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.processes import PATIENCE_S, kill_group, run_command, start_process

KEYS = ("key-of-alice", "key-of-bob")
MODEL = "tilewise-demo"


class RunningServer:
    """A started server; `lines` are what it has logged so far, as JSON objects."""

    def __init__(self, process: subprocess.Popen[str], keys: tuple[str, ...]) -> None:
        self.process = process
        self.keys = keys
        self.lines: list[dict[str, Any]] = []
        self.url = ""
        self._new_lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_address(self) -> None:
        self.url = self.wait_for("serving ")["message"].split(" at ")[1].removesuffix("/v1")

    @property
    def engine_pid(self) -> int:
        """Raise ValueError while there is none."""
        found = run_command(["pgrep", "-P", str(self.process.pid), "-f", "tilewise.engine.process"])
        return int(found.stdout)

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next line whose message begins so."""
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._new_lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"the server ended before it said {text!r}: {self.lines}"
            if line["message"].startswith(text):
                return line

    def http(self, key: str | None = None, **options: Any) -> httpx.Client:
        given = key or (self.keys[0] if self.keys else None)
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    def wait_until_idle(self) -> None:
        """Until the engine, whose counters come with its heartbeat, runs nothing, and every answer has ended."""
        deadline = time.monotonic() + PATIENCE_S
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        while any(self.metric(name) for name in names) or self.num_open:
            assert time.monotonic() < deadline, f"{self.num_open} answers are still open"
            time.sleep(0.05)

    @property
    def num_open(self) -> float:
        return self.metric("tilewise:requests_opened_total") - self.metric("tilewise:requests_ended_total")

    def stop(self) -> int:
        """End it as an orchestrator does, and return its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Kill what still runs, and read its log to the end."""
        kill_group(self.process)
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self.lines.append(json.loads(line) if line.startswith("{") else {"message": line})
                self._new_lines.put(self.lines[-1])
        self._new_lines.put(None)


@contextmanager
def start_server(*flags: str, keys: tuple[str, ...] = (), model: str | None = None) -> Iterator[RunningServer]:
    """A server that has only just been started."""
    command = [sys.executable, "-m", "tilewise", "serve", "api_server", *([model] if model else [])]
    command += ["--server-port", "0", "--log-format", "json", *flags]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    environment["TILEWISE_API_KEYS"] = ",".join(keys)
    with start_process(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        server = RunningServer(process, keys)
        try:
            yield server
        except BaseException:  # shown with the test that failed
            print(*(line for line in server.lines if line.get("level") != "INFO"), sep="\n")
            raise
        finally:
            server.close()


@contextmanager
def run_server(*flags: str, keys: tuple[str, ...] = (), model: str | None = None) -> Iterator[RunningServer]:
    """A server that is ready, and that ends when it is told to."""
    with start_server(*flags, keys=keys, model=model) as server:
        server.wait_for_address()
        server.wait_for("ready")
        try:
            yield server
        finally:  # told to end after a failure too, it takes its files along
            server.stop()


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One server for all tests that change nothing about it: two keys, pictures from loopback allowed."""
    with run_server("--allowed-media-hosts", "127.0.0.1", "--session-len", "8192", keys=KEYS) as running:
        yield running
