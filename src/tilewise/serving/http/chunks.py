"""A chunked body in the one form that every parser reads alike: hexadecimal sizes and CRLF, nothing else.

Chunk extensions and trailers are refused by name: no client or proxy in common use sends either to an API like this,
and parsers differ in where they let them end. So are many tiny chunks, each of which would take as long as a large one.
"""

import re

from tilewise.serving.http.errors import RequestError
from tilewise.serving.http.framing import malformed

# A client that writes a body piece by piece sends some hundreds of bytes a chunk.
MAX_TINY_CHUNKS, MIN_MEAN_BYTES = 1000, 64
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_BEGUN_SIZE_LINE = re.compile(rb"[0-9A-Fa-f]{0,16}|[0-9A-Fa-f]{1,16}\r")
_CRLF = b"\r\n"


class ChunkedBody:
    """Decodes one chunked body as it comes; what follows its end stays in the buffer."""

    def __init__(self) -> None:
        """Begin before the first size."""
        self.is_whole = False
        self._num_left = 0  # bytes of the chunk that have not come
        self._has_open_chunk = False  # its CRLF has not come
        self._is_last = False
        self._num_chunks = self._num_bytes = 0

    def consume(self, buffer: bytearray) -> bytes:
        """Take what has come out of `buffer`, and return its payload as one chunk, and the last chunk at the end.

        Raises:
            RequestError: 400, it is no chunk, or one of too many tiny ones.
        """
        payload, place = bytearray(), 0
        while not self.is_whole:
            if self._num_left:
                piece = buffer[place : place + self._num_left]
                payload += piece
                place += len(piece)
                self._num_left -= len(piece)
            advanced = place if self._num_left else self._read_line(buffer, place)
            if advanced == place:
                break
            place = advanced
        del buffer[:place]
        data = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        return data + b"0\r\n\r\n" if self.is_whole else data

    def _read_line(self, buffer: bytearray, place: int) -> int:
        """Read what stands between payloads, and return where it ends: at `place` where it has not come whole."""
        if self._has_open_chunk or self._is_last:
            return self._read_end(buffer, place)
        match = _SIZE_LINE.match(buffer, place)
        if match is None:
            self._check_begun(bytes(buffer[place : place + 18]))
            return place
        self._begin_chunk(int(match[1], 16))
        return match.end()

    def _read_end(self, buffer: bytearray, place: int) -> int:
        end = bytes(buffer[place : place + 2])
        if not _CRLF.startswith(end):
            raise self._unexpected_end()
        if end != _CRLF:
            return place
        self.is_whole = self._is_last
        self._has_open_chunk = False
        return place + 2

    def _begin_chunk(self, size: int) -> None:
        self._num_left, self._has_open_chunk, self._is_last = size, size > 0, size == 0
        self._num_chunks += 1
        self._num_bytes += size
        if self._num_chunks > MAX_TINY_CHUNKS and self._num_bytes < self._num_chunks * MIN_MEAN_BYTES:
            raise malformed(
                f"The body comes in more than {MAX_TINY_CHUNKS} chunks of less than {MIN_MEAN_BYTES} bytes on "
                "average; send larger ones, or a Content-Length."
            )

    def _check_begun(self, line: bytes) -> None:
        """Refuse what can no longer become a size."""
        if _BEGUN_SIZE_LINE.fullmatch(line) is None:
            raise malformed("A chunk begins with its size in hexadecimal and CRLF; chunk extensions are not accepted.")

    def _unexpected_end(self) -> RequestError:
        if self._is_last:
            return malformed("After the last chunk comes CRLF; trailers are not accepted, send headers in the head.")
        return malformed("A chunk has more bytes than its size says, or does not end in CRLF.")
