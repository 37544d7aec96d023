"""What hostile bodies cost others: memory while and after they are there, a newcomer's wait, a refusal that is read.

    OMP_NUM_THREADS=1 python benchmarks/hostile_bodies.py

Servers of the embedded model are started as users start them, on free ports, one for each function below. Each returns
rows of what was measured beside what is asked. Ends in one JSON line. Takes less than a minute on two cores.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

MIB = 1 << 20
NUM_BODIES, BODY_BYTES = 12, 64 * MIB
NUM_DRIPS, MAX_CONNECTIONS = 60, 16
MODEL_NAME = "benchmark"
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)
CHAT = json.dumps(
    {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Describe a picture."}], "max_tokens": 8}
).encode()
HEALTH = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PATIENCE_S, MOST_SENDING_S = 60.0, 15.0


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside what is asked of it."""

    name: str
    measured: str
    asked: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers on a port of this machine."""

    pid: int
    port: int

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def resident_mib(self) -> float:
        """Memory of the HTTP process, without the engine's."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def ask(self, head: str = "", body: bytes = CHAT) -> int:
        """The status of an answer; of a chat, unless `head` says otherwise."""
        with self.connect() as connection:
            connection.sendall((head or HEAD.format(len(body))).encode() + body)
            return read_status(connection)


def read_status(connection: socket.socket) -> int:
    """The status of the answer, which is read to its end; 0 where the connection ends without one."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in answer and (data := connection.recv(65536)):
            answer += data
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


@contextmanager
def start_server(*flags: str) -> Iterator[Server]:
    """A server of the embedded model that is ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-P", "-m", "tilewise", "serve", "api_server", "--server-port", str(port)]
    command += ["--model-name", MODEL_NAME, "--log-level", "ERROR", *flags]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.1)
        yield Server(process.pid, port)
    finally:
        process.terminate()
        process.wait()


class Watch:
    """An innocent client beside the others: asks again and again, and keeps the times in milliseconds."""

    def __init__(self, server: Server, head: str, body: bytes, interval_s: float) -> None:
        """Begin to ask."""
        self.times_ms: list[float] = []
        self.statuses: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(server, head, body, interval_s))
        self._thread.start()

    def _ask(self, server: Server, head: str, body: bytes, interval_s: float) -> None:
        while not self._ended.wait(interval_s):
            started_at = time.perf_counter()
            self.statuses.add(server.ask(head, body))
            self.times_ms.append(1e3 * (time.perf_counter() - started_at))

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join()


def send_unfinished(server: Server, connection: socket.socket) -> None:
    """All of a body but its last MiB, as fast as it goes; the server may refuse it meanwhile."""
    with contextlib.suppress(OSError):
        connection.sendall(HEAD.format(BODY_BYTES).encode())
        for _ in range(BODY_BYTES // MIB - 1):
            connection.sendall(b" " * MIB)


def measure_memory() -> list[Row]:
    """Row 40: twelve unfinished bodies of 64 MiB, and who is there beside them."""
    with start_server() as server, ExitStack() as stack:
        for _ in range(4):
            server.ask()
        alone, health_alone = Watch(server, "", CHAT, 0.02), Watch(server, HEALTH, b"", 0.005)
        time.sleep(2.0)
        for watch in (alone, health_alone):
            watch.stop()
        before = server.resident_mib()
        beside = Watch(server, "", CHAT, 0.02)
        health = Watch(server, HEALTH, b"", 0.005)
        connections = [stack.enter_context(server.connect()) for _ in range(NUM_BODIES)]
        senders = [threading.Thread(target=send_unfinished, args=(server, item)) for item in connections]
        for sender in senders:
            sender.start()
        during, until = before, time.monotonic() + MOST_SENDING_S
        while any(sender.is_alive() for sender in senders) and time.monotonic() < until:
            during = max(during, server.resident_mib())
            time.sleep(0.02)
        for watch in (beside, health):
            watch.stop()
        stack.close()
        for sender in senders:
            sender.join()
        until = time.monotonic() + 5.0
        while (after := server.resident_mib()) > before + 50 and time.monotonic() < until:
            time.sleep(0.1)
    health_p99, alone_p99 = (statistics.quantiles(watch.times_ms, n=100)[98] for watch in (health, health_alone))
    p50, p50_alone = statistics.median(beside.times_ms), statistics.median(alone.times_ms)
    worst = max(beside.times_ms)
    shown = f"p50 {p50:.0f} ms, max {worst:.0f} ms, statuses {sorted(beside.statuses)}"
    return [
        Row("12 x 64 MiB unfinished: memory", f"+{during - before:.0f} MiB", "+600 MiB", during - before <= 600),
        Row("after they left", f"+{after - before:.0f} MiB", "+50 MiB", after - before <= 50),
        Row("a chat beside them", shown, f"all 200 ({p50_alone:.0f} ms alone)", beside.statuses == {200}),
        Row("/health beside them, p99", f"{health_p99:.1f} ms", f"50 ms ({alone_p99:.1f} alone)", health_p99 < 50),
    ]


def measure_newcomer() -> list[Row]:
    """Row 41: sixty bodies of one byte each at sixteen connections, and one who comes then."""
    with start_server("--max-connections", str(MAX_CONNECTIONS)) as server, ExitStack() as stack:
        server.ask()
        for _ in range(NUM_DRIPS):
            drip = stack.enter_context(server.connect())
            drip.sendall(HEAD.format(1000).encode() + b"{")
        started_at = time.perf_counter()
        status = server.ask()
        wait_ms = 1e3 * (time.perf_counter() - started_at)
    return [Row("60 bodies of one byte: a newcomer", f"{status} in {wait_ms:.0f} ms", "200 in 1 s", status == 200)]


def measure_refusal() -> list[Row]:
    """Row 46: a body of 70 MB, whose sender reads once it has sent all of it."""
    with start_server() as server:
        statuses = {server.ask(body=b" " * 70_000_000) for _ in range(3)}
    return [Row("70 MB: status read", ", ".join(map(str, statuses)), "413", statuses == {413})]


def main() -> None:
    """Measure, print, end in a JSON line."""
    rows = [*measure_memory(), *measure_newcomer(), *measure_refusal()]
    for row in rows:
        print(f"{'' if row.is_met else 'NOT MET ':8}{row.name:36} {row.measured:48} asked: {row.asked}")
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
