"""What one API key's flood leaves of another's first token: beside one ordinary client of that key, and beside a flood.

Key B asks one short question at a time. Key A's ordinary client asks for long answers about pictures one at a time, its
flood asks for 64 at once and for another as each ends; no two pictures are alike. The flood has a process of its own.
"""

import base64
import io
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos_parts.row import Row
from chaos_parts.server import Chat, Server, picture_part, start_server

KEY_A, KEY_B = "fairness-a", "fairness-b"
NUM_FLOODING, PICTURE_SIZE, MAX_TILES, LONG_TOKENS = 64, (640, 480), 4, 64
# Enough questions for a 99th percentile, within a minute altogether.
PHASE_S, SETTLE_S = 20.0, 3.0
MOST_RATIO = 2.0


def ask(server: Server, key: str, content: object, max_tokens: int) -> float:
    """Milliseconds until the first token of a streamed answer, which is then read to its end."""
    chat = Chat(server, content, max_tokens, key, ignore_eos=True)
    return 1e3 * (chat.read()[0] - chat.began_at)


def draw_question(number: int) -> list[object]:
    """A question about a picture of one colour; no two have the same."""
    from PIL import Image

    buffer = io.BytesIO()
    colour = (number % 256, number // 256 % 256, os.getpid() % 256)
    Image.new("RGB", PICTURE_SIZE, colour).save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [picture_part(url, max_dynamic_patch=MAX_TILES), {"type": "text", "text": "Describe it at length."}]


def flood(server: Server, num_clients: int) -> None:
    """Ask for long answers about pictures, so many at a time, until stdin ends."""
    numbers = itertools.count()

    def ask_on() -> None:
        while True:
            with suppress(OSError):
                ask(server, KEY_A, draw_question(next(numbers)), LONG_TOKENS)

    for _ in range(num_clients):
        threading.Thread(target=ask_on, daemon=True).start()
    sys.stdin.read()


@contextmanager
def clients_of_a(server: Server, num_clients: int) -> Iterator[None]:
    """Key A's clients, in a process of their own."""
    command = [sys.executable, "-m", "chaos_parts.fairness", str(server.port), str(num_clients)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        time.sleep(SETTLE_S)
        yield
        process.kill()


def ask_for(server: Server, duration_s: float) -> list[float]:
    """First-token times of key B in milliseconds, sorted; it asks one short question at a time."""
    ends_at, times = time.perf_counter() + duration_s, list[float]()
    while time.perf_counter() < ends_at:
        times.append(ask(server, KEY_B, f"What is {len(times)}?", 1))
    return sorted(times)


def measure() -> list[Row]:
    """Measure both phases on a server of their own."""
    rows, p99 = list[Row](), list[float]()
    with start_server(keys=(KEY_A, KEY_B)) as server:
        ask_for(server, 1.0)
        for name, num_clients in (("one client", 1), ("a flood", NUM_FLOODING)):
            with clients_of_a(server, num_clients):
                times = ask_for(server, PHASE_S)
            p99.append(times[int(0.99 * len(times))])
            rows.append(Row("fair", f"B beside {name} of A: first token, p50", statistics.median(times), "ms"))
            rows.append(Row("fair", f"B beside {name} of A: first token, p99", p99[-1], "ms"))
    rows.append(Row("fair", "p99 beside the flood over that beside one client", p99[1] / p99[0], "", most=MOST_RATIO))
    return rows


if __name__ == "__main__":
    flood(Server(0, int(sys.argv[1])), int(sys.argv[2]))
