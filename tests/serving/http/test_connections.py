"""Connections that ask for nothing, too slowly, or too many at once: a small application over real sockets."""

import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server's extra is not installed")
from tests.processes import PATIENCE_S
from tests.serving.http.http_server import GET, MOST, NUM_BUSY, HttpServer, has_ended, read, read_status
from tilewise.errors import ConfigError
from tilewise.serving.http.connections import ConnectionLimits, create_protocol


@contextmanager
def all_busy(server: HttpServer) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        busy = [stack.enter_context(server.ask("/slow")) for _ in range(NUM_BUSY)]
        deadline = time.monotonic() + PATIENCE_S
        while server.num_slow < NUM_BUSY:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield busy


def test_a_newcomer_to_a_full_server_takes_the_longest_idle_place(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with ExitStack() as stack:
        idle: list[socket.socket] = []
        for _ in range(MOST):
            idle.append(stack.enter_context(server.ask("/")))
            assert read_status(idle[-1]) == 200
        idle[0].sendall(GET.format("/").encode())  # and is now the latest
        assert read_status(idle[0]) == 200
        newcomers = [stack.enter_context(server.ask("/")) for _ in range(3)]
        assert [read_status(connection) for connection in newcomers] == [200] * 3
        assert all(has_ended(connection) for connection in idle[1:4])
        for connection in (idle[0], *idle[4:]):
            connection.sendall(GET.format("/").encode())
            assert read_status(connection) == 200


def test_with_all_connections_busy_health_is_answered_and_the_rest_is_told_to_come_back(
    open_server: Callable[..., HttpServer],
) -> None:
    server = open_server()
    with all_busy(server) as busy:
        for _ in range(3 * MOST):
            with server.ask("/health") as health, server.ask("/v1/models") as other:
                assert read_status(health) == 200
                status, retry_after, body = read(other)
        assert (status, retry_after) == (503, "5")
        assert b"too_many_connections" in body
        server.release.set()
        assert [read_status(connection) for connection in busy] == [200] * NUM_BUSY
    with server.ask("/v1/models") as after:
        assert read_status(after) == 200


def test_who_never_asks_cannot_keep_others_out(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with ExitStack() as stack:
        for number in range(5 * MOST):
            silent = stack.enter_context(server.connect())
            silent.sendall(b"GET / HTTP/1.1\r\nX-Drip: " if number % 2 else b"")
        with server.ask("/v1/models") as connection:
            assert read_status(connection) == 200


@pytest.mark.parametrize("first", [b"", GET.format("/").encode()])
def test_headers_that_drip_end_the_connection(open_server: Callable[..., HttpServer], first: bytes) -> None:
    server = open_server(limits=ConnectionLimits(headers_timeout_s=1.5), keep_alive_s=1)
    with server.connect() as connection:
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


def test_an_answer_that_takes_longer_than_headers_may_is_not_cut(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(limits=ConnectionLimits(headers_timeout_s=1.5))
    with server.ask("/slow") as connection, server.connect() as later:
        assert has_ended(later)  # which was opened later: the limit of both is past
        server.release.set()
        assert read_status(connection) == 200


def test_who_reads_nothing_of_an_answer_is_disconnected(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(limits=ConnectionLimits(stalled_timeout_s=0.3))
    with server.ask("/flood"):
        deadline = time.monotonic() + PATIENCE_S
        while not server.num_floods:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while server.num_connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_https_is_spoken_and_handshakes_that_never_end_are_counted_too(
    open_server: Callable[..., HttpServer], pair: tuple[Path, Path]
) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*pair)
    trusting = ssl.create_default_context(cafile=pair[0])
    server = open_server(server_side)

    def ask(path: str) -> bytes:
        with trusting.wrap_socket(server.connect(), server_hostname="localhost") as connection:
            connection.sendall(GET.format(path).encode())
            data = b""
            while not data.endswith(b"https"):
                data += connection.recv(65536)
        return data

    assert ask("/").startswith(b"HTTP/1.1 200 ")
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(3 * MOST)]
        assert all(has_ended(connection) for connection in silent[: 2 * MOST])
        with server.connect() as plain:
            plain.sendall(GET.format("/").encode())
            while plain.recv(4096):
                pass
        for _ in range(2 * MOST):
            assert ask("/").startswith(b"HTTP/1.1 200 ")


def test_a_handshake_that_never_ends_is_ended(open_server: Callable[..., HttpServer], pair: tuple[Path, Path]) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*pair)
    server = open_server(server_side, ConnectionLimits(headers_timeout_s=0.3))
    with server.connect() as connection:
        assert has_ended(connection)


def test_more_connections_than_the_system_allows_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 1024))

    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError(limits)

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(ConfigError, match=r"max_connections=5000 .*5256 .*1024.*--max-connections.*ulimit") as refusal:
        create_protocol(5000)
    assert refusal.value.param == "max_connections"
