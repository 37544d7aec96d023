"""What one API key's flood leaves of another's first token: beside one ordinary client of that key, and beside a flood.

    OMP_NUM_THREADS=1 python benchmarks/fairness.py [MODEL]

Key B asks one short question at a time. Key A's ordinary client asks for long answers about pictures one at a time, its
flood asks for 64 at once and for another as each ends; no two pictures are alike. The flood has a process of its own.
Prints a table, and one JSON line at the end. Units: milliseconds.
"""

import base64
import http.client
import io
import itertools
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
from contextlib import contextmanager, suppress
from typing import NamedTuple

KEY_A, KEY_B = "fairness-a", "fairness-b"
NUM_FLOODING, PICTURE_SIZE, MAX_TILES, LONG_TOKENS = 64, (640, 480), 4, 64
# Enough questions for a 99th percentile, within a minute altogether.
PHASE_S, SETTLE_S = 20.0, 3.0
MOST_RATIO = 2.0


class Row(NamedTuple):
    """A figure and what is asked of it."""

    name: str
    measured: float
    asked: float | None


def ask(port: int, key: str, content: object, max_tokens: int) -> float:
    """Seconds until the first piece of text of a streamed answer, which is then read to its end."""
    body = {
        "model": "benchmark",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    started_at = time.perf_counter()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{response.status}: {response.read(300)!r}")
        first_s = None
        for line in response:
            if first_s is None and b'"content":"' in line and b'"content":""' not in line:
                first_s = time.perf_counter() - started_at
    finally:
        connection.close()
    return time.perf_counter() - started_at if first_s is None else first_s


def draw_question(number: int) -> list[dict[str, object]]:
    """A question about a picture of one colour; no two have the same."""
    from PIL import Image

    buffer = io.BytesIO()
    colour = (number % 256, number // 256 % 256, os.getpid() % 256)
    Image.new("RGB", PICTURE_SIZE, colour).save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    image_url = {"url": url, "max_dynamic_patch": MAX_TILES}
    return [{"type": "image_url", "image_url": image_url}, {"type": "text", "text": "Describe it at length."}]


def flood(port: int, num_clients: int) -> None:
    """Ask for long answers about pictures, so many at a time, until stdin ends."""
    numbers = itertools.count()

    def ask_on() -> None:
        while True:
            with suppress(OSError, http.client.HTTPException):
                ask(port, KEY_A, draw_question(next(numbers)), LONG_TOKENS)

    for _ in range(num_clients):
        threading.Thread(target=ask_on, daemon=True).start()
    sys.stdin.read()


@contextmanager
def clients_of_a(port: int, num_clients: int) -> Iterator[None]:
    """Key A's clients, in a process of their own."""
    command = [sys.executable, __file__, "--flood", str(port), str(num_clients)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        time.sleep(SETTLE_S)
        yield
        process.kill()


@contextmanager
def serve(model: list[str]) -> Iterator[int]:
    """A server with both keys on a free port, ready to answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-P", "-m", "tilewise", "serve", "api_server", *model, "--server-port", str(port)]
    environment = {**os.environ, "TILEWISE_API_KEYS": f"{KEY_A},{KEY_B}"}
    options = ["--model-name", "benchmark", "--log-level", "WARNING"]
    with subprocess.Popen([*command, *options], env=environment) as process:
        try:
            while process.poll() is None:
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1)
                    break
                time.sleep(0.2)
            else:
                raise SystemExit("the server did not start")
            yield port
        finally:
            process.terminate()


def ask_for(port: int, duration_s: float) -> list[float]:
    """First-token times of key B in milliseconds, sorted; it asks one short question at a time."""
    ends_at, times = time.perf_counter() + duration_s, list[float]()
    while time.perf_counter() < ends_at:
        times.append(1e3 * ask(port, KEY_B, f"What is {len(times)}?", 1))
    return sorted(times)


def measure(model: list[str] | None = None) -> list[Row]:
    """Measure both phases on a server of their own."""
    rows, p99 = list[Row](), list[float]()
    with serve(model or []) as port:
        ask_for(port, 1.0)
        for name, num_clients in (("ordinary", 1), ("flood", NUM_FLOODING)):
            with clients_of_a(port, num_clients):
                times = ask_for(port, PHASE_S)
            p99.append(times[int(0.99 * len(times))])
            rows.append(Row(f"B beside {name} A: questions", len(times), None))
            rows.append(Row(f"B beside {name} A: first token p50 ms", statistics.median(times), None))
            rows.append(Row(f"B beside {name} A: first token p99 ms", p99[-1], None))
    rows.append(Row("p99 beside the flood / beside one client", p99[1] / p99[0], MOST_RATIO))
    return rows


def main() -> None:
    """Measure, print a table, end in a JSON line."""
    if sys.argv[1:2] == ["--flood"]:
        flood(int(sys.argv[2]), int(sys.argv[3]))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = measure(sys.argv[1:])
    for row in rows:
        asked = "" if row.asked is None else f"(asked: at most {row.asked})"
        print(f"{row.name:44} {row.measured:10.2f} {asked}")
    print(json.dumps({"benchmark": "fairness", "rows": [row._asdict() for row in rows]}))


if __name__ == "__main__":
    main()
