"""The head of a request as its bytes came, held to RFC 9112 where h11 reads more than one could mean.

A proxy in front of us may read a lenient head in another way, and take one request for two. So what two parsers could
read differently is refused before h11 has seen it: `check_head` knows bytes alone, no connection. Bodies in chunks are
held as strictly by `chunks`.
"""

import re

from tilewise.serving.http.errors import RequestError

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"[0-9]{1,19}")


def check_head(head: bytes) -> int | None:
    """The length of the body that follows a whole head, in bytes; None where it comes in chunks.

    Raises:
        RequestError: 400 where the head is not exactly HTTP/1.0 or 1.1 with one clear end of its body.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(first)
    if request_line is None:
        raise malformed("The request line is not 'METHOD /path HTTP/1.1'.")
    return _find_body_length([_read_field(line) for line in lines], is_old=request_line[1] == b"0")


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        text = "A header is not 'Name: value' on one line, without spaces before the colon or control characters."
        raise malformed(text)
    return match[1].lower(), match[2].rstrip(b" \t")


def _find_body_length(fields: list[tuple[bytes, bytes]], *, is_old: bool) -> int | None:
    """Refuse fields that do not say in one way where the body ends."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if lengths and codings:
        raise malformed("Content-Length and Transfer-Encoding came together; send one of them.")
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise malformed("Send one Content-Length of digits alone.")
    if codings and (is_old or codings != [b"chunked"]):
        raise malformed("The only Transfer-Encoding is 'chunked', once, in HTTP/1.1.")
    if codings:
        return None
    return int(lengths[0]) if lengths else 0


def malformed(text: str) -> RequestError:
    """The refusal of what is no valid request."""
    return RequestError(400, "malformed_request", text)
