"""What the HTTP server costs beside the engine: tokens a second of 32 streams, and how fast /health answers meanwhile.

    OMP_NUM_THREADS=1 python benchmarks/server.py [MODEL]

A pipeline and a server are started once and answer the same requests in turn, so that both meet whatever else the
machine does; torch has one thread on both sides. `cost_ratio` is the median over the rounds. The streams' reader sleeps
until an answer is whole, since it has no core of its own: `load_cpu_us` is what it and the polling of /health take a
token. Ends in one JSON line.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

NUM_STREAMS, NUM_TOKENS, NUM_ROUNDS, HEALTH_INTERVAL_S = 32, 128, 5, 0.05
QUESTION = "Describe a picture of shapes in many words, number {}."
MODEL_NAME = "benchmark"


def serve_offline(model: list[str]) -> None:
    """Answer each line of stdin, which holds the requests' numbers, with a line: tokens a second of the pipeline."""
    from tilewise import GenerationConfig, pipeline

    generation = GenerationConfig(max_new_tokens=NUM_TOKENS, ignore_eos=True, skip_special_tokens=False)
    with pipeline(model[0] if model else None) as pipe:
        for line in sys.stdin:
            prompts = [QUESTION.format(number) for number in line.split()]
            started = time.perf_counter()
            num_tokens = sum(len(piece.token_ids) for piece in pipe.stream_infer(prompts, generation))
            print(num_tokens / (time.perf_counter() - started), flush=True)


def _ask(port: int, head: str, body: bytes = b"") -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 20)  # wakes at the end, not at each event
        connection.sendall(f"{head} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n".encode() + body)
        answer = b""
        while data := connection.recv(1 << 20):
            answer += data
    return answer


def _stream(port: int, number: int) -> int:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": QUESTION.format(number)}],
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    fields = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    usage = _ask(port, "POST /v1/chat/completions", fields + data).rpartition(b'"completion_tokens":')[2]
    return int(usage[: usage.index(b",")])


def measure_server(port: int, numbers: Iterable[int], health_s: list[float]) -> float:
    """Tokens a second of all streams; the times of /health meanwhile are added, in seconds."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(HEALTH_INTERVAL_S):
            started = time.perf_counter()
            assert b'"ok"' in _ask(port, "GET /health", b"\r\n")
            health_s.append(time.perf_counter() - started)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        started = time.perf_counter()
        num_tokens = sum(pool.map(lambda number: _stream(port, number), numbers))
        rate = num_tokens / (time.perf_counter() - started)
    ended.set()
    watcher.join()
    return rate


def start_server(model: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A server on a free port, ready to answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tilewise", "serve", "api_server", *model, "--server-port", str(port)]
    process = subprocess.Popen([*command, "--model-name", MODEL_NAME, "--log-level", "WARNING"])
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1)
            return process, port
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def compare(ask_offline: Callable[[str], float], port: int) -> dict[str, float]:
    """Measure both sides in turn, after a round that is not counted."""
    offline, online, health_s, load_s = list[float](), list[float](), list[float](), 0.0
    for round_number in range(NUM_ROUNDS + 1):
        numbers = range(round_number * NUM_STREAMS, (round_number + 1) * NUM_STREAMS)
        if round_number == 1:
            offline, online, health_s, load_s = [], [], [], 0.0
        offline.append(ask_offline(" ".join(map(str, numbers))))
        cpu_s = time.process_time()
        online.append(measure_server(port, numbers, health_s))
        load_s += time.process_time() - cpu_s
    health_s.sort()
    return {
        "streams": NUM_STREAMS,
        "offline_tokens_per_s": round(statistics.median(offline), 1),
        "server_tokens_per_s": round(statistics.median(online), 1),
        "cost_ratio": round(statistics.median(1 - b / a for a, b in zip(offline, online, strict=True)), 3),
        "health_p50_ms": round(1e3 * health_s[len(health_s) // 2], 1),
        "health_p99_ms": round(1e3 * health_s[int(0.99 * len(health_s))], 1),
        "load_cpu_us": round(1e6 * load_s / (NUM_ROUNDS * NUM_STREAMS * NUM_TOKENS), 1),
    }


def main() -> None:
    """Measure, print, end in a JSON line."""
    model = sys.argv[1:]
    if model[:1] == ["--offline"]:
        serve_offline(model[1:])
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, __file__, "--offline", *model]
    offline = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    server, port = start_server(model)

    def ask_offline(numbers: str) -> float:
        assert offline.stdin is not None
        assert offline.stdout is not None
        print(numbers, file=offline.stdin, flush=True)
        return float(offline.stdout.readline())

    try:
        result = compare(ask_offline, port)
    finally:
        for process in (server, offline):
            process.terminate()
            process.wait()
    for name, value in result.items():
        print(f"{name:22} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
