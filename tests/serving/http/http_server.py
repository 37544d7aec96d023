"""A small application behind real connections, and what sockets ask of it."""

import asyncio
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import pytest

pytest.importorskip("uvicorn", reason="the server's extra is not installed")
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.processes import PATIENCE_S
from tilewise.errors import TilewiseError
from tilewise.serving.http.body import held_body_of, read_json
from tilewise.serving.http.body_memory import BodyMemory
from tilewise.serving.http.connections import ConnectionLimits, create_protocol
from tilewise.serving.http.errors import error_response
from tilewise.serving.http.events import EventStream
from tilewise.serving.http.gateway import Gateway

MOST, NUM_BUSY = 16, 8
GET = "GET {} HTTP/1.1\r\nHost: x\r\n\r\n"
POST = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


class HttpServer:
    """A server with a few paths.

    /slow answers once `release` is set, /flood with more than a client takes unread, and /events with one event and
    then nothing. /body reads a body; /kept holds it until `release` is set, and /late
    begins to read it then.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        limits: ConnectionLimits | None = None,
        keep_alive_s: int = 600,
        body_memory: BodyMemory | None = None,
    ) -> None:
        self.num_asked = self.num_slow = self.num_floods = self.num_kept = self.num_left = 0
        self.release = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self._listener.getsockname()
        config = uvicorn.Config(
            Gateway(self._answer),
            http=create_protocol(MOST, tls, limits or ConnectionLimits(), body_memory),
            timeout_keep_alive=keep_alive_s,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])))
        self._thread.start()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_asked += 1
        match scope["path"]:
            case "/slow":
                self.num_slow += 1
                await self._wait_for_release()
            case "/flood":
                self.num_floods += 1
                await send({"type": "http.response.start", "status": 200, "headers": []})
                for _ in range(1024):  # 64 MiB, far more than the system buffers
                    await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
                return
            case "/events":
                await EventStream(_Source(self), _one_event())(scope, receive, send)
                return
            case "/body" | "/kept" | "/late":
                try:
                    await self._read(Request(scope, receive))
                except TilewiseError as error:
                    await error_response(error)(scope, receive, send)
                    return
                except ClientDisconnect:
                    self.num_left += 1
                    raise
            case _:
                pass
        await PlainTextResponse(scope["scheme"])(scope, receive, send)

    async def _read(self, request: Request) -> None:
        with held_body_of(request) as held:
            if request.url.path == "/late":
                await self._wait_for_release()
            await read_json(request, lambda value: value, held)
            if request.url.path == "/kept":
                self.num_kept += 1
                await self._wait_for_release()

    async def _wait_for_release(self) -> None:
        while not self.release.is_set():
            await asyncio.sleep(0.01)

    @property
    def num_connections(self) -> int:
        return len(self._server.server_state.connections)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_S)

    def ask(self, path: str) -> socket.socket:
        return self.send(GET.format(path).encode())

    def post(self, path: str, sent: bytes, length: int | None = None) -> socket.socket:
        """Begin a body of `length` bytes."""
        return self.send(POST.format(path, len(sent) if length is None else length).encode() + sent)

    def send(self, data: bytes) -> socket.socket:
        connection = self.connect()
        connection.sendall(data)
        return connection

    def close(self) -> None:
        self.release.set()
        self._server.should_exit = True
        self._thread.join()


class _Source:
    """What events are made of; it counts who has left."""

    is_read = True

    def __init__(self, server: HttpServer) -> None:
        self._house = server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._house.num_left += 1


async def _one_event() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"
    await asyncio.Event().wait()


def read(connection: socket.socket) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body."""
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.getheader("Retry-After"), response.read()


def read_status(connection: socket.socket) -> int:
    return read(connection)[0]


def read_statuses(connection: socket.socket) -> list[int]:
    """Those of all answers until the connection ends."""
    with connection.makefile("rb") as answers:
        found = re.findall(rb"HTTP/1\.1 (\d+) ", answers.read())
    return [int(status) for status in found if status != b"100"]


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
