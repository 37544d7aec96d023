"""Bodies that are slow, unfinished, refused or followed by a half-closed connection, over real sockets."""

import json
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from tests.serving.http.http_server import (
    GET,
    MOST,
    NUM_BUSY,
    POST,
    HttpServer,
    has_ended,
    read,
    read_status,
    read_statuses,
    wait_until,
)
from tilewise.serving.http.body_memory import BodyMemory
from tilewise.serving.http.connections import ConnectionLimits
from tilewise.serving.http.linger import LingerLimits
from tilewise.serving.http.places import Places

MIB = 1 << 20
WHOLE = b"[" + b" " * (MIB // 2) + b"]"
# More than the system buffers on the way.
HUGE = 70_000_000


def test_a_length_that_is_only_claimed_holds_nothing(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(body_memory=BodyMemory(MIB))
    with ExitStack() as stack:
        for _ in range(NUM_BUSY - 1):
            stack.enter_context(server.post("/body", b"[", MIB))
        wait_until(lambda: server.num_asked == NUM_BUSY - 1)
        with server.post("/body", WHOLE) as newcomer:
            assert read_status(newcomer) == 200


def test_with_the_memory_full_the_unfinished_body_that_waits_longest_gives_way_and_is_told_to_come_back(
    open_server: Callable[..., HttpServer],
) -> None:
    memory = BodyMemory(2 * MIB - 8)
    server = open_server(body_memory=memory)
    with ExitStack() as stack:
        unfinished = list[socket.socket]()
        for number in range(1, 4):  # a fourth does not fit
            unfinished.append(stack.enter_context(server.post("/body", WHOLE[:-1], MIB)))
            wait_until(lambda number=number: memory.num_bytes == number * (len(WHOLE) - 1))
        smaller = b"[" + b" " * (MIB // 2 - 2) + b"]"
        with server.post("/body", smaller) as newcomer:
            assert read_status(newcomer) == 200
        status, retry_after, body = read(unfinished[0])
        assert (status, retry_after) == (503, "5")
        assert json.loads(body)["error"]["code"] == "bodies_full"
        for connection in unfinished[1:]:
            connection.sendall(b" " * (MIB - len(WHOLE)) + b"]")
            assert read_status(connection) == 200


def test_with_the_memory_held_by_whole_bodies_a_newcomer_is_told_to_come_back(
    open_server: Callable[..., HttpServer],
) -> None:
    server = open_server(body_memory=BodyMemory(MIB))
    with server.post("/kept", WHOLE) as kept:
        wait_until(lambda: server.num_kept == 1)
        with server.post("/body", WHOLE) as newcomer:
            status, retry_after, _ = read(newcomer)
        assert (status, retry_after) == (503, "5")
        server.release.set()
        assert read_status(kept) == 200
    with server.post("/body", WHOLE) as newcomer:
        assert read_status(newcomer) == 200


def test_a_body_below_the_minimum_rate_is_told_so_and_closed(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(body_memory=BodyMemory(patience_s=0.3))
    with server.post("/body", b"[", 100) as connection:
        status, _, body = read(connection)
        assert (status, json.loads(body)["error"]["code"]) == (408, "timeout")
        assert has_ended(connection)


def test_a_body_that_keeps_the_minimum_rate_may_take_its_time(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(body_memory=BodyMemory(min_bytes_per_s=10, patience_s=0.3))
    with server.post("/body", b"[", 50) as drip, server.post("/body", b"[", 50) as silent:
        drip.sendall(b" " * 40)  # four seconds' worth
        assert read_status(silent) == 408
        drip.sendall(b" " * 8 + b"]")
        assert read_status(drip) == 200


def test_bodies_of_one_byte_keep_no_newcomer_out_once_they_are_slow(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(body_memory=BodyMemory(grace_s=0.5))
    with ExitStack() as stack:
        drips = [stack.enter_context(server.post("/body", b"[", 1000)) for _ in range(NUM_BUSY)]
        wait_until(lambda: server.num_asked == NUM_BUSY)
        drips += [stack.enter_context(server.post("/body", b"[", 1000)) for _ in range(60 - NUM_BUSY)]

        def is_answered() -> bool:
            with server.post("/body", WHOLE) as newcomer, suppress(ConnectionError):
                return read_status(newcomer) == 200
            return False  # all the places were taken by those that are being refused

        wait_until(is_answered)
        for _ in range(NUM_BUSY):
            assert is_answered()
        status, _, body = read(drips[0])
        assert (status, json.loads(body)["error"]["code"]) == (408, "timeout")


def test_a_body_that_comes_after_its_head_makes_way_for_nobody_at_once(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(body_memory=BodyMemory(grace_s=3600))
    with ExitStack() as stack:
        for _ in range(NUM_BUSY - 1):
            stack.enter_context(server.ask("/slow"))
        wait_until(lambda: server.num_slow == NUM_BUSY - 1)
        expecting = POST.replace("Host", "Expect: 100-continue\r\nHost").format("/body", 2)
        late = stack.enter_context(server.send(expecting.encode()))
        assert late.recv(4096).startswith(b"HTTP/1.1 100 ")
        with server.post("/body", b"[]") as newcomer:
            assert read_status(newcomer) == 503
        late.sendall(b"[]")
        assert read_status(late) == 200


def test_for_health_nobody_gives_way(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(body_memory=BodyMemory(grace_s=0))
    with ExitStack() as stack:
        for _ in range(NUM_BUSY - 1):
            stack.enter_context(server.ask("/slow"))
        wait_until(lambda: server.num_slow == NUM_BUSY - 1)
        slow = stack.enter_context(server.post("/body", b"[", 2))
        wait_until(lambda: server.num_asked == NUM_BUSY)
        for _ in range(3):
            with server.ask("/health") as health:
                assert read_status(health) == 200
        slow.sendall(b"]")
        assert read_status(slow) == 200


class Peer:
    """A connection that only notes what is done to it."""

    is_lingering = is_ended = is_leaving = False

    def finish(self) -> None:
        self.is_ended = True

    def mark_leaving(self) -> None:
        self.is_leaving = True


def test_where_everybody_else_is_busy_a_slow_body_gives_its_place_to_a_newcomer() -> None:
    memory = BodyMemory(grace_s=0)
    places = Places(MOST, memory)
    peers = [cast(Any, Peer()) for _ in range(MOST + 2)]
    for peer in peers[:MOST]:
        assert places.add(peer)
        _, body = places.begin(peer, is_public=False)
        body.end_arrival()
    assert not places.add(peers[MOST])
    slow = memory.hold(peers[3])
    assert places.add(peers[MOST])
    assert slow.refusal is not None
    assert not peers[3].is_ended, "it may read why"
    assert peers[3].is_leaving
    _, body = places.begin(peers[MOST], is_public=False)
    body.end_arrival()
    assert not places.add(peers[MOST + 1])


def test_of_too_many_that_linger_the_one_is_ended_that_has_been_silent_longest() -> None:
    places = Places(MOST, BodyMemory())
    peers = [cast(Any, Peer()) for _ in range(66)]
    for peer in peers[1:]:
        peer.is_lingering = True
    for peer in peers[:64]:
        places.leave(peer)
    places.leave(peers[1])  # which sends again
    places.leave(peers[64])
    assert [index for index, peer in enumerate(peers) if peer.is_ended] == [2], "the first has no answer yet"
    places.leave(peers[65])
    assert [index for index, peer in enumerate(peers) if peer.is_ended] == [2, 3]


def test_a_body_that_gave_way_and_comes_whole_before_its_refusal_ends_its_connection(
    open_server: Callable[..., HttpServer],
) -> None:
    server = open_server(body_memory=BodyMemory(grace_s=0))
    with ExitStack() as stack:
        for _ in range(NUM_BUSY - 1):
            stack.enter_context(server.ask("/slow"))
        late = stack.enter_context(server.post("/late", b"[", 2))
        wait_until(lambda: server.num_asked == NUM_BUSY)
        with server.post("/body", b"[]") as newcomer:
            assert read_status(newcomer) == 200
        late.sendall(b"]")
        with server.ask("/health") as health:
            assert read_status(health) == 200
        server.release.set()
        assert b"\r\nconnection: close\r\n" in late.recv(4096, socket.MSG_PEEK)
        assert read_statuses(late) == [408]


def test_a_server_that_ends_waits_for_no_client_that_was_refused_and_stays(
    open_server: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = open_server()
    chunked = POST.replace("Content-Length: {}", "Transfer-Encoding: chunked").format("/body")
    with server.post("/body", b"[", HUGE) as large, server.send(chunked.encode() + b"zz\r\n") as malformed:
        assert read_status(large) == 413
        assert read_status(malformed) == 400
        assert server.num_connections == 2
        server.close()
        assert has_ended(large)
        assert has_ended(malformed)
    assert "Cancel" not in caplog.text


@pytest.mark.parametrize("head", [POST, POST.replace("Type: ", "Type: text/plain;"), POST + "X-Long: " + "a" * 40_000])
def test_a_refusal_can_be_read_by_who_sends_all_of_a_body_first(
    open_server: Callable[..., HttpServer], head: str
) -> None:
    fields = head.replace("\r\n\r\n", "\r\n").rstrip("\r\n").format("/body", HUGE) + "\r\n\r\n"
    server = open_server()
    with server.connect() as connection:
        connection.sendall(fields.encode())
        for _ in range(HUGE // MIB):
            connection.sendall(b" " * MIB)
        status = read_status(connection)
        assert status == (431 if "X-Long" in head else 415 if "text/plain" in head else 413)
        assert has_ended(connection)
    wait_until(lambda: not server.num_connections)


def test_a_refusal_says_that_the_connection_ends(open_server: Callable[..., HttpServer]) -> None:
    with open_server().post("/body", b"[", HUGE) as connection:
        assert b"\r\nconnection: close\r\n" in connection.recv(4096)


@pytest.mark.parametrize(
    "limits", [LingerLimits(total_s=0.3), LingerLimits(num_bytes=4 * MIB), LingerLimits(silence_s=0.3)]
)
def test_who_was_refused_and_sends_on_or_stays_is_ended(
    open_server: Callable[..., HttpServer], limits: LingerLimits
) -> None:
    server = open_server(limits=ConnectionLimits(linger=limits))
    with server.post("/body", b"[", HUGE) as connection:
        assert read_status(connection) == 413
        if limits.silence_s >= 1:
            with suppress(OSError):
                for _ in range(HUGE // 4096):
                    connection.sendall(b" " * 4096)
        wait_until(lambda: not server.num_connections)


def test_refused_connections_take_nobodys_place(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with ExitStack() as stack:
        for _ in range(3 * MOST):
            refused = stack.enter_context(server.post("/body", b"[", HUGE))
            assert read_status(refused) == 413
        with server.post("/body", WHOLE) as newcomer:
            assert read_status(newcomer) == 200


def test_a_client_that_ends_amid_its_body_is_gone(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with server.post("/body", b"[", 100) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert has_ended(connection)
        wait_until(lambda: server.num_left == 1)


@pytest.fixture
def contexts(pair: tuple[Path, Path]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and a client's."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*pair)
    return server_side, ssl.create_default_context(cafile=pair[0])


def test_over_tls_a_refusal_can_be_read_too_and_is_the_last(
    open_server: Callable[..., HttpServer], contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    limits = ConnectionLimits(linger=LingerLimits(silence_s=0.3))
    server = open_server(contexts[0], limits)
    with contexts[1].wrap_socket(server.connect(), server_hostname="localhost") as connection:
        connection.sendall(POST.format("/body", HUGE).encode())
        for _ in range(HUGE // MIB):
            connection.sendall(b" " * MIB)
        assert read_status(connection) == 413
        with suppress(ssl.SSLError):
            assert has_ended(connection)


def test_over_tls_a_client_that_ends_its_side_is_gone(
    open_server: Callable[..., HttpServer], contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server = open_server(contexts[0])
    with contexts[1].wrap_socket(server.connect(), server_hostname="localhost") as connection:
        connection.sendall(GET.format("/slow").encode())
        wait_until(lambda: server.num_slow == 1)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as left:
            assert b"HTTP" not in left.read()
        wait_until(lambda: not server.num_connections)
