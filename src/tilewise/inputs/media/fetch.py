"""Fetches a picture over http(s) without reaching what a stranger must not reach, or staying longer than allowed.

The connection goes to the very address that `address_guard` has checked, with the Host header and the certificate
check still on the name. Redirects start over. Knows bytes, not pictures.

Proxy variables (`http_proxy` and kin) are ignored on purpose: a proxy would resolve the name a second time.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from tilewise.errors import ImageFetchError
from tilewise.inputs.media.address_guard import (
    FORBIDDEN_IN_URL,
    POLL_S,
    Resolver,
    Target,
    checked_addresses,
    parse_url,
    resolve_host,
    seconds_left,
)
from tilewise.inputs.media.fetch_context import check_wanted, current_context
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


_HEADERS = ("User-Agent: tilewise", "Accept: image/*", "Accept-Encoding: identity", "Connection: close")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 1 << 16
_OVERHEAD_BYTES = 1 << 20


def fetch(url: str, policy: ImagePolicy, resolve: Resolver = resolve_host) -> bytes:
    """Return the body behind an http(s) URL.

    Units: at most `limits.max_bytes` bytes and, redirects included, `limits.fetch_timeout_s` seconds, or what is left
    of the request's.

    Raises:
        ImageFetchError: the URL is refused, unreachable, too slow, or answers with anything but 200.
        ImageTooLargeError: the body is longer than the limit.
    """
    most_s, context, started_at = policy.limits.fetch_timeout_s, current_context.get(), time.monotonic()
    if context is not None and context.left_s <= 0:
        raise ImageFetchError("The hosts of the request's pictures together took too long; send fewer, or their data.")
    try:
        return _follow(parse_url(url), policy, resolve, started_at + min(most_s, context.left_s if context else most_s))
    finally:
        if context is not None:
            context.left_s -= time.monotonic() - started_at


def _follow(target: Target, policy: ImagePolicy, resolve: Resolver, deadline: float) -> bytes:
    limits = policy.limits
    for _ in range(limits.max_redirects + 1):
        addresses = checked_addresses(target, policy, resolve, deadline)
        try:
            with _connect(target, addresses, deadline) as connection:
                body = _request(connection, target, limits, deadline)
        except ssl.SSLError:
            raise ImageFetchError("The host in the picture's URL has no certificate that can be trusted.") from None
        except (OSError, http.client.HTTPException, ValueError):
            text = "The picture's URL could not be fetched: its host is unreachable, too slow, or broke off."
            raise ImageFetchError(text) from None
        if isinstance(body, bytes):
            return body
        target = parse_url(body)
    raise ImageFetchError(f"The picture's URL redirects more than {limits.max_redirects} times; give the final one.")


class _PacedReader(io.RawIOBase):
    """A socket's receiving end that keeps a deadline, a minimum rate from the first byte on, and a byte limit.

    `http.client` may loop over headers, chunks and trailers as it likes: every one of its reads ends up here.
    """

    def __init__(self, connection: socket.socket, limits: ImageLimits, deadline: float) -> None:
        self._connection = connection
        self._limits = limits
        self._deadline = deadline
        self._first_byte_s: float | None = None
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        limits, deadline = self._limits, self._deadline
        if self._first_byte_s is not None:
            slowest_s = limits.rate_grace_s + self._num_bytes / limits.min_bytes_per_s
            deadline = min(deadline, self._first_byte_s + slowest_s)
        try:
            count = self._receive(buffer, deadline)
        except TimeoutError:
            if deadline == self._deadline:
                raise
            raise ImageFetchError(f"The picture's host sends below {limits.min_bytes_per_s} bytes a second.") from None
        if self._first_byte_s is None:
            self._first_byte_s = time.monotonic()
        self._num_bytes += count
        limits.check_bytes((self._num_bytes - _OVERHEAD_BYTES) // 2)
        return count

    def _receive(self, buffer: "WriteableBuffer", deadline: float) -> int:
        while True:
            check_wanted()
            self._connection.settimeout(min(seconds_left(deadline), POLL_S))
            with suppress(TimeoutError):
                return self._connection.recv_into(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self, _CHUNK_BYTES)


def _connect(target: Target, addresses: Sequence[str], deadline: float) -> socket.socket:
    """Connect to the first of the checked addresses that answers; the certificate must be the host's."""
    failure: OSError = TimeoutError()
    for number, address in enumerate(addresses):
        try:
            share_s = seconds_left(deadline) / (len(addresses) - number)
            connection = socket.create_connection((address, target.port), timeout=share_s)
        except OSError as error:
            failure = error
            continue
        if target.scheme == "http":
            return connection
        try:
            connection.settimeout(seconds_left(deadline))
            return ssl.create_default_context().wrap_socket(connection, server_hostname=target.host)
        except (OSError, ValueError):
            connection.close()
            raise
    raise failure


def _request(connection: socket.socket, target: Target, limits: ImageLimits, deadline: float) -> bytes | str:
    """Send the request; return the body, or the URL that a redirect names."""
    lines = (f"GET {target.path} HTTP/1.1", f"Host: {target.origin}", *_HEADERS, "", "")
    connection.settimeout(seconds_left(deadline))
    connection.sendall("\r\n".join(lines).encode("ascii"))
    response = http.client.HTTPResponse(_PacedReader(connection, limits, deadline), method="GET")  # type: ignore[arg-type]
    with response:
        response.begin()
        if response.status in _REDIRECTS:
            location = response.getheader("Location", "").encode("latin-1").decode(errors="replace")
            if not location:
                raise ImageFetchError("The picture's host redirects without saying where to.")
            return location if FORBIDDEN_IN_URL.search(location) else urljoin(target.url, location)
        if response.status != 200:
            raise ImageFetchError(f"The picture's host answered with status {response.status}.")
        if (response.getheader("Content-Encoding") or "identity").strip().lower() != "identity":
            raise ImageFetchError("The picture's host sent a compressed body, which is not accepted.")
        return _read_body(response, limits)


def _read_body(response: http.client.HTTPResponse, limits: ImageLimits) -> bytes:
    announced = response.length
    limits.check_bytes(announced or 0)
    body = bytearray()
    while chunk := response.read(min(_CHUNK_BYTES, limits.max_bytes + 1 - len(body))):
        body += chunk
        limits.check_bytes(len(body))
    if announced is not None and len(body) != announced:
        raise ImageFetchError("The picture's host sent less than it announced.")
    return bytes(body)
