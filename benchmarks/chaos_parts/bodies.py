"""Rows 40, 41 and 46: what hostile bodies cost in memory, how long a newcomer waits, whether a refusal is read."""

import contextlib
import json
import math
import socket
import statistics
import threading
import time
from contextlib import ExitStack

from chaos_parts.row import Row
from chaos_parts.server import MODEL_NAME, Server, start_server

MIB = 1 << 20
NUM_BODIES, BODY_BYTES = 12, 64 * MIB
NUM_DRIPS, MAX_CONNECTIONS = 60, 16
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)
CHAT = json.dumps(
    {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Describe a picture."}], "max_tokens": 8}
).encode()
HEALTH = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MOST_SENDING_S = 15.0


def read_status(connection: socket.socket) -> int:
    """The status of the answer, which is read to its end; 0 where the connection ends without one."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in answer and (data := connection.recv(65536)):
            answer += data
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def ask(server: Server, head: str = "", body: bytes = CHAT) -> int:
    """The status of an answer; of a chat, unless `head` says otherwise."""
    with server.connect() as connection:
        connection.sendall((head or HEAD.format(len(body))).encode() + body)
        return read_status(connection)


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
            self.statuses.add(ask(server, head, body))
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
            ask(server)
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
    num_refused = sum(status != 200 for status in beside.statuses)
    return [
        Row(40, f"{NUM_BODIES} unfinished bodies of 64 MiB: memory", during - before, "MiB more", most=600),
        Row(40, "after they left", after - before, "MiB more", most=50),
        Row(40, "a chat beside them, statuses that are not 200", num_refused, "", most=0),
        Row(40, "a chat alone, p50", p50_alone, "ms"),
        Row(40, "a chat beside them, p50", p50, "ms"),
        Row(40, "a chat beside them, longest", max(beside.times_ms), "ms"),
        Row(40, "/health alone, p99", alone_p99, "ms"),
        Row(40, "/health beside them, p99", health_p99, "ms", most=50),
    ]


def measure_newcomer() -> list[Row]:
    """Row 41: sixty bodies of one byte each at sixteen connections, and one who comes then."""
    with start_server("--max-connections", str(MAX_CONNECTIONS)) as server, ExitStack() as stack:
        ask(server)
        for _ in range(NUM_DRIPS):
            drip = stack.enter_context(server.connect())
            drip.sendall(HEAD.format(1000).encode() + b"{")
        started_at, until = time.perf_counter(), time.perf_counter() + MOST_SENDING_S
        wait_ms = math.inf
        while wait_ms == math.inf and time.perf_counter() < until:
            # 503 until the bodies are slow: one whose second packet is on its way looks the same.
            if ask(server) == 200:
                wait_ms = 1e3 * (time.perf_counter() - started_at)
            time.sleep(0.05)
    return [Row(41, f"{NUM_DRIPS} bodies of one byte: a newcomer's answer", wait_ms, "ms", most=3000)]


def measure_refusal() -> list[Row]:
    """Row 46: a body of 70 MB, whose sender reads once it has sent all of it."""
    with start_server() as server:
        statuses = [ask(server, body=b" " * 70_000_000) for _ in range(3)]
    return [Row(46, "3 bodies of 70 MB: refusals that are read", statuses.count(413), "", least=3)]


def measure() -> list[Row]:
    """All of it, each on a server of its own."""
    return [*measure_memory(), *measure_newcomer(), *measure_refusal()]
