"""The bytes of one connection, cut into heads and bodies before h11 sees them.

h11 gets a head that `framing` accepts, then the bytes of its body, and nothing of the next request until it has ended
this one. So it is never h11 that decides where a request ends. Each byte is searched once.
"""

import re

from tilewise.serving.http.chunks import ChunkedBody
from tilewise.serving.http.errors import RequestError
from tilewise.serving.http.framing import check_head, malformed

# Above what the gateway lets through, so that its answer comes first.
MAX_HEAD_BYTES = 64 << 10
_HEAD_END = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")


class _SizedBody:
    """A body whose head says its length; of 0 bytes where it says nothing."""

    def __init__(self, num_bytes: int) -> None:
        self._num_left = num_bytes

    @property
    def is_whole(self) -> bool:
        return not self._num_left

    def consume(self, buffer: bytearray) -> bytes:
        with memoryview(buffer) as view:
            data = bytes(view[: self._num_left])
        del buffer[: len(data)]
        self._num_left -= len(data)
        return data


class RequestStream:
    """What one client sends, request by request."""

    def __init__(self) -> None:
        """Begin before the first head."""
        self._buffer = bytearray()
        self.begin()

    @property
    def is_whole(self) -> bool:
        """The request under way has been read to its end."""
        return self._body is not None and self._body.is_whole

    @property
    def num_unread(self) -> int:
        """Bytes that have come and are not read."""
        return len(self._buffer)

    @property
    def first_line(self) -> bytes:
        """As much as has come of the line that begins the head under way."""
        return self._first_line or bytes(self._buffer[:MAX_HEAD_BYTES]).partition(b"\r\n")[0]

    def begin(self) -> None:
        """Begin the next request."""
        self._body: _SizedBody | ChunkedBody | None = None
        self._may_be_empty_line = True
        self._num_searched = 0
        self._first_line = b""

    def add(self, data: bytes) -> None:
        """Keep what has come."""
        self._buffer += data

    def read(self) -> bytes:
        """The next piece for h11; empty where no more of this request has come.

        Raises:
            RequestError: 400 where it can be read in two ways, 431 where its head is too long.
        """
        if self.is_whole:
            return b""
        if self._body is not None:
            return self._body.consume(self._buffer)
        self._skip_empty_line()
        head = self._read_head()
        if head:
            self._first_line = head.partition(b"\r\n")[0]
            length = check_head(head)
            self._body = ChunkedBody() if length is None else _SizedBody(length)
        return head

    def _skip_empty_line(self) -> None:
        """Skip one CRLF before a request line, which some clients send after a body (RFC 9112, section 2.2)."""
        if not self._may_be_empty_line or len(self._buffer) < 2:
            return
        self._may_be_empty_line = False
        if self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
            self._num_searched = 0

    def _read_head(self) -> bytes:
        """A head with its empty line, taken out of the buffer; empty where it has not come whole."""
        start = self._num_searched
        end = self._buffer.find(_HEAD_END, max(start - len(_HEAD_END) + 1, 0))
        is_found = end >= 0
        if not is_found:
            end = len(self._buffer)
        if _BARE_LF.search(self._buffer, start, end):
            raise malformed("A line of the head ends in LF alone; end it in CRLF.")
        if end > MAX_HEAD_BYTES:
            raise RequestError(431, "headers_too_large", "The request's headers are too large.")
        if not is_found:
            self._num_searched = end
            return b""
        head = bytes(self._buffer[: end + len(_HEAD_END)])
        del self._buffer[: len(head)]
        return head
