"""Heads that two parsers could read in two ways: to the check alone, and over real connections."""

import json
from collections.abc import Callable

import pytest

from tests.serving.http.house import GET, POST, House, has_ended, read, read_status, read_statuses, wait_until
from tilewise.serving.http.errors import RequestError
from tilewise.serving.http.framing import MAX_HEAD_BYTES, check_head

GOOD = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a?b=%20 HTTP/1.0\r\n\r\n",
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
    "an empty line first": b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "gzip, chunked": BODY + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": BODY + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "xchunked": BODY + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /body HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("head", GOOD)
def test_a_head_is_whole_with_its_empty_line_and_never_before(head: bytes) -> None:
    assert not any(check_head(head[:end]) for end in range(len(head)))
    assert check_head(head)
    assert check_head(head + b"\n not looked at \0")


def test_a_head_without_end_is_refused_at_its_bound() -> None:
    start = b"GET / HTTP/1.1\r\nX-A: "
    assert not check_head(start + b"a" * (MAX_HEAD_BYTES - len(start)))
    with pytest.raises(RequestError) as refusal:
        check_head(start + b"a" * MAX_HEAD_BYTES)
    assert refusal.value.status == 431


@pytest.mark.parametrize("head", BAD.values(), ids=BAD.keys())
def test_what_two_parsers_could_read_in_two_ways_is_refused_and_reaches_no_route(
    open_house: Callable[..., House], head: bytes
) -> None:
    house = open_house()
    with house.send(head) as connection:
        status, _, body = read(connection)
        assert (status, json.loads(body)["error"]["code"]) == (400, "malformed_request")
        assert has_ended(connection)
    with house.send(GET.format("/").encode() + head) as connection:  # a later one on a connection is no better
        assert read_statuses(connection) == [200, 400]
    assert house.num_asked == 1


def test_bytes_of_a_body_are_no_head_and_what_follows_it_is_one(open_house: Callable[..., House]) -> None:
    house = open_house()
    body = json.dumps(["GET / HTTP/9.9\n\nHost : x"], indent=1).encode()
    chunked = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    first = POST.format("/body", len(body)).encode() + body
    second = chunked + b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    third = GET.format("/").encode()
    for pieces in ([first + second + third + b"GET / HTTP/1.1\n"], [first, second, third, b"GET / HTTP/1.1\n"]):
        with house.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            assert read_statuses(connection) == [200, 200, 200, 400]
    assert house.num_asked == 6


def test_a_head_may_come_byte_by_byte(open_house: Callable[..., House]) -> None:
    with open_house().connect() as connection:
        for _ in range(2):
            for byte in GET.format("/").encode():
                connection.sendall(bytes([byte]))
            assert read_status(connection) == 200


def test_a_head_without_end_is_told_so(open_house: Callable[..., House]) -> None:
    house = open_house()
    with house.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (8 << 20)) as connection:
        assert read_status(connection) == 431
    assert not house.num_asked


@pytest.mark.parametrize(
    "chunk", [b"zz\r\n", b"3\n[1]\r\n", b"-1\r\n", b"0x3\r\n[1]\r\n", b"3\r\n[1]X\r\n", b"1" * 21 + b"\r\n"]
)
def test_a_malformed_chunk_is_told_so_and_its_route_learns_that_no_more_comes(
    open_house: Callable[..., House], chunk: bytes
) -> None:
    house = open_house()
    head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with house.send(head + b"1\r\n[\r\n" + chunk) as connection:
        assert read_status(connection) == 400
        assert has_ended(connection)
    wait_until(lambda: house.num_left == 1)
