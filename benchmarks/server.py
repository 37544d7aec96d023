"""What the HTTP server costs beside the engine: tokens a second of 32 streams, and how fast /health answers meanwhile.

    OMP_NUM_THREADS=1 python benchmarks/server.py [MODEL]

The same requests run offline and over HTTP, in turn, twice each; torch has one thread on both sides. Ends in one
JSON line.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

NUM_STREAMS, NUM_TOKENS, NUM_ROUNDS = 32, 128, 2
QUESTION = "Describe a picture of shapes in many words, number {}."


def measure_offline(model: list[str]) -> float:
    """Tokens a second of the pipeline in a process of its own."""
    from tilewise import GenerationConfig, pipeline

    generation = GenerationConfig(max_new_tokens=NUM_TOKENS, ignore_eos=True, skip_special_tokens=False)
    with pipeline(*model) as pipe:
        pipe("hello", GenerationConfig(max_new_tokens=4))
        prompts = [QUESTION.format(number) for number in range(NUM_STREAMS)]
        started = time.perf_counter()
        num_tokens = sum(len(piece.token_ids) for piece in pipe.stream_infer(prompts, generation))
        return num_tokens / (time.perf_counter() - started)


async def _stream(port: int, number: int) -> int:
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
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = await reader.read(-1)
    writer.close()
    usage = answer.rpartition(b'"completion_tokens":')[2]
    return int(usage[: usage.index(b",")])


async def _watch_health(port: int, times: list[float]) -> None:
    while True:
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read(-1)
        writer.close()
        times.append(time.perf_counter() - started)
        await asyncio.sleep(0.05)


async def measure_server(port: int) -> tuple[float, list[float]]:
    """Tokens a second of all streams, and the times of /health in seconds."""
    await _stream(port, -1)
    times: list[float] = []
    watch = asyncio.create_task(_watch_health(port, times))
    started = time.perf_counter()
    num_tokens = sum(await asyncio.gather(*(_stream(port, number) for number in range(NUM_STREAMS))))
    rate = num_tokens / (time.perf_counter() - started)
    watch.cancel()
    return rate, times


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


MODEL_NAME = "benchmark"


def main() -> None:
    """Alternate, print, end in a JSON line."""
    model = sys.argv[1:]
    if model[:1] == ["--offline"]:
        print(measure_offline(model[1:]))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    offline, online, health = [], [], list[float]()
    for _ in range(NUM_ROUNDS):
        command = [sys.executable, __file__, "--offline", *model]
        offline.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
        process, port = start_server(model)
        try:
            rate, times = asyncio.run(measure_server(port))
        finally:
            process.terminate()
            process.wait()
        online.append(rate)
        health += times
    health.sort()
    result = {
        "streams": NUM_STREAMS,
        "offline_tokens_per_s": round(statistics.median(offline), 1),
        "server_tokens_per_s": round(statistics.median(online), 1),
        "cost_ratio": round(1 - statistics.median(online) / statistics.median(offline), 3),
        "health_p50_ms": round(1e3 * health[len(health) // 2], 1),
        "health_p99_ms": round(1e3 * health[int(0.99 * len(health))], 1),
    }
    for name, value in result.items():
        print(f"{name:22} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
