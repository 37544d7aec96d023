"""Clients that end their sending side over real sockets: some wait for their answer, and some have left."""

import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.serving.http.http_server import GET, POST, HttpServer, read_statuses, wait_until
from tilewise.serving.http.connections import ConnectionLimits
from tilewise.serving.http.half_close import PresenceLimits

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
OLD_GET = GET.replace("HTTP/1.1", "HTTP/1.0")


def count_interim(connection: socket.socket, num_wanted: int) -> int:
    """Read interim responses until there are so many, or the connection ends."""
    data = b""
    while len(data) < num_wanted * len(INTERIM):
        piece = connection.recv(1)
        if not piece:
            break
        data += piece
    return data.count(INTERIM)


def test_a_client_that_ends_its_side_after_its_request_gets_its_answer(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with server.ask("/slow") as connection:
        connection.shutdown(socket.SHUT_WR)
        # An interim response comes because the end was noticed.
        assert connection.recv(100, socket.MSG_PEEK).startswith(b"HTTP/1.1 100 ")
        server.release.set()
        assert read_statuses(connection) == [200]


def test_a_client_that_ends_its_side_after_several_requests_gets_all_answers(
    open_server: Callable[..., HttpServer],
) -> None:
    server = open_server()
    with server.send(GET.format("/slow").encode() + POST.format("/body", 1).encode() + b"1") as connection:
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.num_slow == 1)
        server.release.set()
        assert read_statuses(connection) == [200, 200]


@pytest.mark.parametrize("second", [POST.format("/body", 2) + "[", "GET / HT"])
def test_a_client_that_ends_its_side_amid_a_second_request_gets_one_answer_and_is_closed(
    open_server: Callable[..., HttpServer], second: str
) -> None:
    server = open_server()
    with server.send((GET.format("/slow") + second).encode()) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert count_interim(connection, 1) == 1
        server.release.set()
        assert read_statuses(connection) == [200]
    wait_until(lambda: not server.num_connections)


def test_a_client_that_waits_gets_three_interim_responses_and_no_more(open_server: Callable[..., HttpServer]) -> None:
    server = open_server(limits=ConnectionLimits(presence=PresenceLimits(0.01, 0.01, 0.05)))
    with server.ask("/slow") as connection, server.ask("/events") as clock:
        clock.shutdown(socket.SHUT_WR)
        connection.shutdown(socket.SHUT_WR)
        fillers = b""
        while fillers.count(b":\n\n") < 40:  # looks that have passed since
            fillers += clock.recv(4096)
        server.release.set()
        with connection.makefile("rb") as answer:
            assert answer.read().count(INTERIM) == 3


@pytest.mark.parametrize(
    "begin",
    [GET.format("/slow"), GET.format("/events"), POST.format("/kept", 1) + "1", OLD_GET.format("/slow")],
    ids=["not streamed", "streamed", "with a body", "HTTP/1.0"],
)
def test_a_client_that_leaves_while_it_waits_is_noticed_before_the_second_interim_response_of_one_that_stays(
    open_server: Callable[..., HttpServer], begin: str
) -> None:
    server = open_server()
    with server.ask("/slow") as stays:
        stays.shutdown(socket.SHUT_WR)
        assert count_interim(stays, 1) == 1
        with server.send(begin.encode()):
            wait_until(lambda: server.num_asked == 2)
        assert count_interim(stays, 1) == 1
        assert server.num_connections == 1
        if "/events" in begin:
            assert server.num_left == 1
        server.release.set()
        assert read_statuses(stays) == [200]


def test_a_client_that_resets_after_it_ended_its_side_is_noticed(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with ExitStack() as stack:
        connection = stack.enter_context(server.ask("/slow"))
        connection.shutdown(socket.SHUT_WR)
        assert count_interim(connection, 2) == 2  # nothing is written any more
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not server.num_connections)
