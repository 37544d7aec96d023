"""Chunked bodies: to the decoder alone, at every split, and over real connections."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.http.http_server import HttpServer, has_ended, read, read_status, read_statuses, wait_until
from tilewise.serving.http.chunks import MAX_TINY_CHUNKS, MIN_MEAN_BYTES, ChunkedBody
from tilewise.serving.http.errors import RequestError

HEAD = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
END = b"0\r\n\r\n"
BAD = {
    "no size": b"zz\r\n",
    "an empty size": b"\r\n",
    "LF after a size": b"3\n[1]\r\n",
    "a signed size": b"-1\r\n",
    "0x": b"0x3\r\n[1]\r\n",
    "a size of 17 digits": b"1" * 17 + b"\r\n",
    "a space after a size": b"3 \r\n[1]\r\n",
    "a longer chunk": b"3\r\n[1]X\r\n",
    "LF after a chunk": b"3\r\n[1]\n0\r\n\r\n",
    "an extension": b"3;a=b\r\n[1]\r\n",
    "an extension with a bare CR": b"3;a\rb\r\n[1]\r\n",
    "an extension with a control byte": b"3;\x01\r\n[1]\r\n",
    "LF after the last chunk": b"3\r\n[1]\r\n0\r\n\n" + SMUGGLED,
    "a trailer": b"3\r\n[1]\r\n0\r\nX: a\r\n\r\n" + SMUGGLED,
    "a trailer that ends in LF": b"3\r\n[1]\r\n0\r\nX: a\n\n" + SMUGGLED,
    "CR CR LF after the last chunk": b"3\r\n[1]\r\n0\r\n\r\r\n" + SMUGGLED,
}


def encode(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + END


def decode(*packets: bytes) -> tuple[bytes, bytes, bool]:
    """The payload, what is left after the body, and whether that has ended."""
    body, buffer, payload = ChunkedBody(), bytearray(), b""
    for packet in packets:
        buffer += packet
        data = body.consume(buffer)
        while data and data != END:
            size, _, rest = data.partition(b"\r\n")
            payload += rest[: int(size, 16)]
            data = rest[int(size, 16) + 2 :]
    return payload, bytes(buffer), body.is_whole


def is_refused(*packets: bytes) -> bool:
    try:
        decode(*packets)
    except RequestError:
        return True
    return False


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_a_body_is_the_same_wherever_its_packets_end_and_nothing_after_it_is_read(
    chunks: list[bytes], data: st.DataObject
) -> None:
    sent = encode(*chunks) + SMUGGLED
    assert decode(sent) == (b"".join(chunks), SMUGGLED, True)
    assert decode(*(bytes([byte]) for byte in sent)) == (b"".join(chunks), SMUGGLED, True)
    for end in range(len(sent)):
        assert decode(sent[:end], sent[end:]) == (b"".join(chunks), SMUGGLED, True)
    end = data.draw(st.integers(0, len(sent) - len(SMUGGLED) - 1))
    assert not decode(sent[:end])[2]


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
def test_what_is_no_chunk_is_refused_wherever_its_packets_end(sent: bytes) -> None:
    assert is_refused(sent)
    assert is_refused(*(bytes([byte]) for byte in sent))
    assert all(is_refused(sent[:end], sent[end:]) for end in range(len(sent)))


@given(st.binary(max_size=60))
def test_bytes_at_random_are_judged_alike_whole_and_byte_by_byte(sent: bytes) -> None:
    assert is_refused(sent) == is_refused(*(bytes([byte]) for byte in sent))


def test_many_tiny_chunks_are_refused_and_as_many_larger_ones_are_not() -> None:
    assert not is_refused(encode(*[b"a"] * (MAX_TINY_CHUNKS - 1)))
    assert is_refused(encode(*[b"a"] * MAX_TINY_CHUNKS))
    assert not is_refused(encode(*[b"a" * (MIN_MEAN_BYTES + 1)] * (4 * MAX_TINY_CHUNKS)))


@pytest.mark.parametrize("chunk", BAD.values(), ids=BAD.keys())
def test_a_malformed_chunk_is_refused_and_its_route_learns_that_no_more_comes(
    open_server: Callable[..., HttpServer], chunk: bytes
) -> None:
    server = open_server()
    with server.send(HEAD + b"1\r\n \r\n") as connection:
        wait_until(lambda: server.num_asked == 1)
        connection.sendall(chunk)
        assert read_status(connection) == 400
        assert has_ended(connection)
    wait_until(lambda: server.num_left == 1)


@pytest.mark.parametrize("end", [b"\n", b"X: a\n\n", b"X: a\r\n\r\n"])
def test_no_second_request_hides_behind_the_end_of_a_chunked_body(
    open_server: Callable[..., HttpServer], end: bytes
) -> None:
    server = open_server()
    with server.send(HEAD + b"3\r\n[1]\r\n0\r\n" + end + SMUGGLED) as connection:
        assert read_statuses(connection) == [400]
    assert server.num_asked <= 1


def test_a_body_of_tiny_chunks_is_told_to_send_larger_ones(open_server: Callable[..., HttpServer]) -> None:
    server = open_server()
    with server.send(HEAD + b"1\r\n \r\n" * 100_000) as connection:
        status, _, body = read(connection)
        assert status == 400
        assert b"send larger ones" in body


def test_a_chunked_body_may_come_byte_by_byte(open_server: Callable[..., HttpServer]) -> None:
    with open_server().connect() as connection:
        for byte in HEAD + encode(b"[1, ", b"2]"):
            connection.sendall(bytes([byte]))
        assert read_status(connection) == 200
