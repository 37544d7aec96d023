"""The head of a request as its bytes came, held to RFC 9112 where h11 reads more than one could mean.

A proxy in front of us may read a lenient head in another way, and take one request for two. So what two parsers could
read differently is refused before h11 has seen it: `check_head` knows bytes alone, no connection. h11 takes over with
the body. Of a chunked one it wants hexadecimal sizes of at most 20 digits and CRLF after sizes and chunks alike; it
skips chunk extensions, spaces after a size, and trailers, whose lines may end in a bare LF.
"""

import re

from tilewise.serving.http.errors import RequestError

# Above what the gateway lets through, so that its answer, which is logged, comes first.
MAX_HEAD_BYTES = 64 << 10
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"[0-9]{1,19}")


def check_head(data: bytes) -> bool:
    """Whether `data`, which begins with a head, holds all of it; what follows it is not looked at.

    Raises:
        RequestError: 400 where it is not exactly HTTP/1.0 or 1.1 with one clear end of its body, 431 where it is
            too long.
    """
    end = data.find(b"\r\n\r\n")
    head = data[:end] if end >= 0 else data
    if _BARE_LF.search(head):
        raise _malformed("A line of the head ends in LF alone; end it in CRLF.")
    if len(head) > MAX_HEAD_BYTES:
        raise RequestError(431, "headers_too_large", "The request's headers are too large.")
    if end < 0:
        return False
    first, *lines = head.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(first)
    if request_line is None:
        raise _malformed("The request line is not 'METHOD /path HTTP/1.1'.")
    _check_body_end([_read_field(line) for line in lines], is_old=request_line[1] == b"0")
    return True


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        text = "A header is not 'Name: value' on one line, without spaces before the colon or control characters."
        raise _malformed(text)
    return match[1].lower(), match[2].rstrip(b" \t")


def _check_body_end(fields: list[tuple[bytes, bytes]], *, is_old: bool) -> None:
    """Refuse fields that do not say in one way where the body ends."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if lengths and codings:
        raise _malformed("Content-Length and Transfer-Encoding came together; send one of them.")
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise _malformed("Send one Content-Length of digits alone.")
    if codings and (is_old or codings != [b"chunked"]):
        raise _malformed("The only Transfer-Encoding is 'chunked', once, in HTTP/1.1.")


def _malformed(text: str) -> RequestError:
    return RequestError(400, "malformed_request", text)
