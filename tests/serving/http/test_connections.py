"""Connections that ask for nothing, too slowly, or too many at once: a five-line application behind the real door."""

import asyncio
import contextlib
import http.client
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import which

import pytest

pytest.importorskip("uvicorn", reason="the server's extra is not installed")
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.processes import PATIENCE_S, run_command
from tilewise.errors import ConfigError
from tilewise.serving.http.connections import ConnectionLimits, create_protocol
from tilewise.serving.http.gateway import Gateway

MOST, NUM_BUSY = 16, 8
GET = "GET {} HTTP/1.1\r\nHost: x\r\n\r\n"


class House:
    """A server whose /slow answers once `release` is set, and /flood with more than a client takes unread."""

    def __init__(self, tls: ssl.SSLContext | None, limits: ConnectionLimits, keep_alive_s: int) -> None:
        self.num_slow = self.num_floods = 0
        self.release = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self._listener.getsockname()
        config = uvicorn.Config(
            Gateway(self._answer),
            http=create_protocol(MOST, tls, limits),
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
        if scope["path"] == "/slow":
            self.num_slow += 1
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if scope["path"] == "/flood":
            self.num_floods += 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1024):  # 64 MiB, far more than the system buffers
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            return
        await PlainTextResponse(scope["scheme"])(scope, receive, send)

    @property
    def num_connections(self) -> int:
        return len(self._server.server_state.connections)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_S)

    def ask(self, path: str) -> socket.socket:
        connection = self.connect()
        connection.sendall(GET.format(path).encode())
        return connection

    def close(self) -> None:
        self.release.set()
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def open_house() -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def open_one(
        tls: ssl.SSLContext | None = None, limits: ConnectionLimits | None = None, keep_alive_s: int = 600
    ) -> House:
        houses.append(House(tls, limits or ConnectionLimits(), keep_alive_s))
        return houses[-1]

    yield open_one
    for house in houses:
        house.close()


def read(connection: socket.socket) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body."""
    with http.client.HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.getheader("Retry-After"), response.read()


def read_status(connection: socket.socket) -> int:
    return read(connection)[0]


def has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@contextmanager
def all_busy(house: House) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        busy = [stack.enter_context(house.ask("/slow")) for _ in range(NUM_BUSY)]
        deadline = time.monotonic() + PATIENCE_S
        while house.num_slow < NUM_BUSY:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield busy


def test_a_newcomer_to_a_full_house_takes_the_longest_idle_place(open_house: Callable[..., House]) -> None:
    house = open_house()
    with ExitStack() as stack:
        idle: list[socket.socket] = []
        for _ in range(MOST):
            idle.append(stack.enter_context(house.ask("/")))
            assert read_status(idle[-1]) == 200
        idle[0].sendall(GET.format("/").encode())  # and is now the latest
        assert read_status(idle[0]) == 200
        newcomers = [stack.enter_context(house.ask("/")) for _ in range(3)]
        assert [read_status(connection) for connection in newcomers] == [200] * 3
        assert all(has_ended(connection) for connection in idle[1:4])
        for connection in (idle[0], *idle[4:]):
            connection.sendall(GET.format("/").encode())
            assert read_status(connection) == 200


def test_with_all_connections_busy_health_is_answered_and_the_rest_is_told_to_come_back(
    open_house: Callable[..., House],
) -> None:
    house = open_house()
    with all_busy(house) as busy:
        for _ in range(3 * MOST):
            with house.ask("/health") as health, house.ask("/v1/models") as other:
                assert read_status(health) == 200
                status, retry_after, body = read(other)
        assert (status, retry_after) == (503, "5")
        assert b"too_many_connections" in body
        house.release.set()
        assert [read_status(connection) for connection in busy] == [200] * NUM_BUSY
    with house.ask("/v1/models") as after:
        assert read_status(after) == 200


def test_who_never_asks_cannot_keep_others_out(open_house: Callable[..., House]) -> None:
    house = open_house()
    with ExitStack() as stack:
        for number in range(5 * MOST):
            silent = stack.enter_context(house.connect())
            silent.sendall(b"GET / HTTP/1.1\r\nX-Drip: " if number % 2 else b"")
        with house.ask("/v1/models") as connection:
            assert read_status(connection) == 200


@pytest.mark.parametrize("first", [b"", GET.format("/").encode()])
def test_headers_that_drip_end_the_connection(open_house: Callable[..., House], first: bytes) -> None:
    house = open_house(limits=ConnectionLimits(headers_timeout_s=1.5), keep_alive_s=1)
    with house.connect() as connection:
        if first:
            connection.sendall(first)
            assert read_status(connection) == 200
        connection.sendall(b"GET / HTTP/1.1\r\nX-Drip: ")
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b"a")
                time.sleep(0.02)
        assert time.monotonic() < deadline


def test_an_answer_that_takes_longer_than_headers_may_is_not_cut(open_house: Callable[..., House]) -> None:
    house = open_house(limits=ConnectionLimits(headers_timeout_s=1.5))
    with house.ask("/slow") as connection, house.connect() as later:
        assert has_ended(later)  # which was opened later: the limit of both is past
        house.release.set()
        assert read_status(connection) == 200


def test_who_reads_nothing_of_an_answer_is_disconnected(open_house: Callable[..., House]) -> None:
    house = open_house(limits=ConnectionLimits(stalled_timeout_s=0.3))
    with house.ask("/flood"):
        deadline = time.monotonic() + PATIENCE_S
        while not house.num_floods:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while house.num_connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    if which("openssl") is None:
        pytest.skip("making a certificate needs the openssl command")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", *curve, *subject]
    run_command([*command, "-keyout", key, "-out", certificate], check=True)
    return certificate, key


def test_https_is_spoken_and_handshakes_that_never_end_are_counted_too(
    open_house: Callable[..., House], pair: tuple[Path, Path]
) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*pair)
    trusting = ssl.create_default_context(cafile=pair[0])
    house = open_house(server_side)

    def ask(path: str) -> bytes:
        with trusting.wrap_socket(house.connect(), server_hostname="localhost") as connection:
            connection.sendall(GET.format(path).encode())
            data = b""
            while not data.endswith(b"https"):
                data += connection.recv(65536)
        return data

    assert ask("/").startswith(b"HTTP/1.1 200 ")
    with ExitStack() as stack:
        silent = [stack.enter_context(house.connect()) for _ in range(3 * MOST)]
        assert all(has_ended(connection) for connection in silent[: 2 * MOST])
        with house.connect() as plain:
            plain.sendall(GET.format("/").encode())
            while plain.recv(4096):
                pass
        for _ in range(2 * MOST):
            assert ask("/").startswith(b"HTTP/1.1 200 ")


def test_a_handshake_that_never_ends_is_ended(open_house: Callable[..., House], pair: tuple[Path, Path]) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*pair)
    house = open_house(server_side, ConnectionLimits(headers_timeout_s=0.3))
    with house.connect() as connection:
        assert has_ended(connection)


def test_more_connections_than_the_system_allows_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 1024))

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError(limits)

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(ConfigError, match=r"max_connections=5000 .*5256 .*1024.*--max-connections.*ulimit") as refusal:
        create_protocol(5000)
    assert refusal.value.param == "max_connections"
