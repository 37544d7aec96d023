"""A thousand clients that leave at a moment of their own leave nothing behind: no answer, no block, no file."""

import asyncio
import base64
import io
import json
import os
import random
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.clients.question import ask
from tests.clients.running import KEYS, MODEL, RunningServer, run_server
from tests.clients.test_openai_sdk import DATA_URL
from tests.processes import PATIENCE_S

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux' /proc"),
]

NUM_CLIENTS, NUM_AT_ONCE, NUM_FIRST = 1000, 32, 100
NUM_PROCESSES = 3  # at rest: the server, the engine, a decoder of pictures
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: no last words, and what was not read is thrown away
MOMENTS = ("in the request", "before the first byte", "at the first byte", "in the middle", "after the last byte")


@dataclass(frozen=True)
class Client:
    """What one asks, when it leaves, and whether it says so (`is_reset` breaks the connection)."""

    body: bytes
    moment: str
    delay_s: float
    num_events: int
    is_reset: bool

    async def visit(self, host: str, port: int) -> int | None:
        """Ask and leave; give the status, if it was heard."""
        reader, writer = await asyncio.open_connection(host, port)
        try:
            return await asyncio.wait_for(self._converse(reader, writer), PATIENCE_S)
        finally:
            if self.is_reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\nConnection: close\r\n\r\n"
        is_cut = self.moment == MOMENTS[0]
        writer.write(head.encode() + self.body[: len(self.body) // 2 if is_cut else None])
        await writer.drain()
        if self.moment in MOMENTS[:2]:
            await asyncio.sleep(self.delay_s)
            return None
        status = int((await reader.readline()).split()[1])
        if self.moment == "in the middle":
            events = b""
            for _ in range(self.num_events):
                events += await reader.read(1000)
                assert not reader.at_eof(), f"the stream ended: {events[-1000:]!r}"
        elif self.moment == "after the last byte":
            await reader.read()
        return status


def create_picture(chance: random.Random) -> str:
    """A picture of one tile that the server has not seen."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(chance.randbytes(3))).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def create_client(chance: random.Random) -> Client:
    moment = chance.choice(MOMENTS)
    (url,) = chance.choices((None, DATA_URL, create_picture(chance)), (5, 4, 1))
    picture = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    is_streamed = moment in ("at the first byte", "in the middle") or chance.random() < 0.5
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [*picture, {"type": "text", "text": f"{chance.random()}?"}]}],
        "stream": is_streamed,
        "n": chance.choice((1, 1, 1, 2)),
        "ignore_eos": True,
    }
    if moment == "after the last byte":
        body["max_tokens"] = 4
    data = json.dumps(body).encode()
    return Client(data, moment, chance.random() ** 2, chance.randint(1, 12), chance.random() < 0.5)


async def visit_all(server: RunningServer, clients: list[Client]) -> list[int | None]:
    host, port = server.url.removeprefix("http://").split(":")
    room = asyncio.Semaphore(NUM_AT_ONCE)

    async def visit(client: Client) -> int | None:
        async with room:
            return await client.visit(host, int(port))

    return await asyncio.gather(*map(visit, clients))


def family(pid: int) -> list[int]:
    """A process and its descendants: the engine, and the decoder of pictures, which a thread started."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(deeper for own in lists for child in own for deeper in family(int(child)))]


def count_open_files(server: RunningServer) -> list[int]:
    return sorted(len(os.listdir(f"/proc/{pid}/fd")) for pid in family(server.process.pid))


def wait_until_as_at_rest(server: RunningServer) -> None:
    """Nothing runs, nothing waits, every block is free or held by the cache alone, and one decoder is kept."""
    server.wait_until_idle()
    deadline = time.monotonic() + PATIENCE_S
    while server.metric("vllm:kv_cache_usage_perc"):
        assert time.monotonic() < deadline, "blocks are still held, though nothing runs"
        time.sleep(0.05)
    while len(family(server.process.pid)) > NUM_PROCESSES:
        assert time.monotonic() < deadline, "decoders are still there, though no picture comes"
        time.sleep(0.05)


def test_a_thousand_aborted_requests_leave_nothing_behind_and_the_next_is_answered_alike() -> None:
    chance = random.Random(1)
    with run_server("--session-len", "4096", keys=KEYS) as server:
        before = ask(server)
        asyncio.run(visit_all(server, [create_client(chance) for _ in range(NUM_FIRST)]))
        wait_until_as_at_rest(server)
        assert ask(server) == before  # and whatever is started when it is first needed runs by now
        files, num_opened = count_open_files(server), server.metric("tilewise:requests_opened_total")
        assert len(files) == NUM_PROCESSES

        clients = [create_client(chance) for _ in range(NUM_CLIENTS)]
        statuses = asyncio.run(visit_all(server, clients))
        wait_until_as_at_rest(server)
        assert ask(server) == before
        assert server.metric("tilewise:requests_opened_total") > num_opened + NUM_CLIENTS / 2
        heard = {status for client, status in zip(clients, statuses, strict=True) if client.moment in MOMENTS[2:]}
        assert heard == {200}
        deadline = time.monotonic() + PATIENCE_S
        while sum(now := count_open_files(server)) > sum(files):
            assert time.monotonic() < deadline, f"{files} files were open, and {now} are"
            time.sleep(0.1)
    answered = [line["status"] for line in server.lines if line.get("path") == "/v1/chat/completions"]
    assert len(answered) >= NUM_CLIENTS + NUM_FIRST
    assert set(answered) == {200, 499}
    assert not [line for line in server.lines if line.get("level") in ("WARNING", "ERROR")]
