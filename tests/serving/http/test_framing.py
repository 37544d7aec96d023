"""Heads that two parsers could read in two ways: to the check alone, and over real connections."""

import json
from collections.abc import Callable

import pytest

from tests.serving.http.http_server import (
    GET,
    POST,
    HttpServer,
    has_ended,
    read,
    read_status,
    read_statuses,
    wait_until,
)
from tilewise.serving.http.errors import RequestError
from tilewise.serving.http.request_stream import MAX_HEAD_BYTES, RequestStream

GOOD = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a?b=%20 HTTP/1.0\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost:x\r\nContent-Length: \t5 \r\nX-Empty:\r\nX-Latin: caf\xe9\t!\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: Chunked\r\n\r\n",
)
BODY = b"POST /body HTTP/1.1\r\nHost: x\r\n"
BAD = {
    "length and chunked": BODY + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": BODY + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n11",
    "a list of lengths": BODY + b"Content-Length: 2, 2\r\n\r\n11",
    "a signed length": BODY + b"Content-Length: +2\r\n\r\n11",
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "one bare LF": b"GET / HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n",
    "a bare LF at the end": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "a folded line": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \0\r\n\r\n",
    "a bell": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \x07\r\n\r\n",
    "a bare CR": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\rX-B: b\r\n\r\n",
    "a control character in a name": b"GET / HTTP/1.1\r\nHost: x\r\nX\x01A: b\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "gzip, chunked": BODY + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": BODY + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "xchunked": BODY + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /body HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
}


def read_all(*pieces: bytes) -> list[bytes]:
    """What h11 would get of the first request, piece by piece of what came."""
    stream = RequestStream()
    read = list[bytes]()
    for piece in pieces:
        stream.add(piece)
        while got := stream.read():
            read.append(got)
    return read


@pytest.mark.parametrize("head", GOOD)
def test_a_head_is_whole_with_its_empty_line_and_never_before(head: bytes) -> None:
    for end in range(len(head)):
        assert not read_all(head[:end])
        assert read_all(head[:end], head[end:]) == [head.removeprefix(b"\r\n")]
    assert read_all(*(bytes([byte]) for byte in head)) == [head.removeprefix(b"\r\n")]


@pytest.mark.parametrize("head", BAD.values(), ids=BAD.keys())
def test_how_a_head_is_split_into_packets_changes_nothing(head: bytes) -> None:
    def is_refused(*pieces: bytes) -> bool:
        try:
            read_all(*pieces)
        except RequestError:
            return True
        return False

    whole = is_refused(head)  # all but the one that h11 refuses
    assert all(is_refused(head[:end], head[end:]) == whole for end in range(len(head)))
    assert is_refused(*(bytes([byte]) for byte in head)) == whole


def test_a_head_without_end_is_refused_at_its_bound() -> None:
    start = b"GET / HTTP/1.1\r\nX-A: "
    assert not read_all(start + b"a" * (MAX_HEAD_BYTES - len(start)))
    with pytest.raises(RequestError) as refusal:
        read_all(start + b"a" * (MAX_HEAD_BYTES - len(start)), b"a")
    assert refusal.value.status == 431


@pytest.mark.parametrize("head", BAD.values(), ids=BAD.keys())
def test_what_two_parsers_could_read_in_two_ways_is_refused_and_reaches_no_route(
    open_server: Callable[..., HttpServer], head: bytes
) -> None:
    server = open_server()
    with server.send(head) as connection:
        status, _, body = read(connection)
        assert (status, json.loads(body)["error"]["code"]) == (400, "malformed_request")
        assert has_ended(connection)
    with server.send(GET.format("/").encode() + head) as connection:  # a later one on a connection is no better
        assert read_statuses(connection) == [200, 400]
    assert server.num_asked == 1


def test_bytes_of_a_body_are_no_head_and_what_follows_it_is_one(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    body = json.dumps(["GET / HTTP/9.9\n\nHost : x"], indent=1).encode()
    chunked = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    first = POST.format("/body", len(body)).encode() + body
    second = chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    third = GET.format("/").encode()
    for pieces in ([first + second + third + b"GET / HTTP/1.1\n"], [first, second, third, b"GET / HTTP/1.1\n"]):
        with server.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            assert read_statuses(connection) == [200, 200, 200, 400]
    assert server.num_asked == 6


def test_a_head_may_come_byte_by_byte(open_server: Callable[..., HttpServer]) -> None:
    with open_server().connect() as connection:
        for _ in range(2):
            for byte in GET.format("/").encode():
                connection.sendall(bytes([byte]))
            assert read_status(connection) == 200


def test_a_head_without_end_is_told_so(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with server.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (8 << 20)) as connection:
        assert read_status(connection) == 431
    assert not server.num_asked


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("is_one_packet", [True, False])
def test_what_comes_after_a_connections_last_request_does_not_replace_its_answer(
    open_server: Callable[..., HttpServer], version: str, is_one_packet: bool
) -> None:
    server = open_server()
    head = POST.replace("1.1", version).replace("Host", "Connection: close\r\nHost").format("/kept", 2).encode()
    stray = b"\r\n" + GET.format("/").encode()
    with server.send(head + b"[]" + (stray if is_one_packet else b"")) as connection:
        wait_until(lambda: server.num_kept == 1)
        if not is_one_packet:
            connection.sendall(stray)
        server.release.set()
        assert read_statuses(connection) == [200]
    assert server.num_asked == 1


def test_a_body_may_be_followed_by_an_empty_line(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with server.send(POST.format("/body", 2).encode() + b"[]\r\n") as connection:
        assert read_status(connection) == 200
        connection.sendall(GET.format("/").encode())
        assert read_status(connection) == 200
    assert server.num_asked == 2


def test_a_client_that_leaves_after_a_line_too_many_is_noticed(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with server.send(GET.format("/slow").encode() + b"\r\nGET"):
        wait_until(lambda: server.num_slow == 1)
    wait_until(lambda: not server.num_connections)


ACCESS = "tilewise.access"


@pytest.mark.parametrize(
    ("sent", "method", "path", "status"),
    [
        (BAD["length and chunked"], "POST", "/body", 400),
        (b"GET /a?key=secret HTTP/9.9\r\n\r\n", "GET", "/a", 400),
        (b"\x16\x03\x01\r\n\r\n", "\x16\x03\x01", "", 400),
        (BAD["no host"], "GET", "/", 400),
        (b"GET /long HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES, "GET", "/long", 431),
    ],
)
def test_a_refused_head_is_logged_once_under_the_id_that_its_client_reads(
    open_server: Callable[..., HttpServer],
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    method: str,
    path: str,
    status: int,
) -> None:
    caplog.set_level("INFO", ACCESS)
    server = open_server()
    with server.send(sent) as connection, connection.makefile("rb") as answer:
        head = answer.read().partition(b"\r\n\r\n")[0].lower()
    facts = [record.args for record in caplog.records if record.name == ACCESS]
    assert len(facts) == 1
    logged = facts[0]
    assert isinstance(logged, dict)
    assert (logged["method"], logged["path"], logged["status"]) == (method, path, status)
    assert logged["peer"] == "127.0.0.1"
    assert f"x-request-id: {logged['request_id']}\r\n".encode() in head
    assert "secret" not in caplog.text


def test_a_request_whose_body_is_refused_is_logged_once_under_the_id_that_its_client_reads(
    open_server: Callable[..., HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", ACCESS)
    server = open_server()
    head = POST.replace("Content-Length: {}", "Transfer-Encoding: chunked").format("/body").encode()
    with server.send(head) as connection, connection.makefile("rb") as answer:
        wait_until(lambda: server.num_asked == 1)
        connection.sendall(b"zz\r\n")
        head = answer.read().partition(b"\r\n\r\n")[0].lower()
    wait_until(lambda: any(record.name == ACCESS for record in caplog.records))
    facts = [record.args for record in caplog.records if record.name == ACCESS]
    assert len(facts) == 1
    logged = facts[0]
    assert isinstance(logged, dict)
    assert (logged["method"], logged["path"], logged["status"]) == ("POST", "/body", 400)
    assert f"x-request-id: {logged['request_id']}\r\n".encode() in head
