"""Fetches a picture over http(s) without reaching what a stranger must not reach, or staying longer than allowed.

Safety rests on addresses, not on spelling: a host is resolved once, every address it has must be globally
routable (or the operator's own choice), and the connection goes to that very address, with the Host header and
the certificate check still on the name. Redirects start over. Knows bytes, not pictures.

Proxy variables (`http_proxy` and kin) are ignored on purpose: a proxy would resolve the name a second time.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from tilewise.errors import ImageFetchError
from tilewise.inputs.media.fetch_context import check_wanted, current_errand
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Resolver = Callable[[str, int], Sequence[str]]

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HEADERS = ("User-Agent: tilewise", "Accept: image/*", "Accept-Encoding: identity", "Connection: close")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FORBIDDEN_IN_URL = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*")
_MAX_URL_CHARACTERS = 8192
_CHUNK_BYTES = 1 << 16
_OVERHEAD_BYTES = 1 << 20
_POLL_S = 0.25

_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Not reachable from outside, though ipaddress of some Python 3.11-3.13 calls them global.
# Source: IANA special-purpose address registries; 168.63.129.16 is Azure's host agent.
_CLOSED = ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "3fff::/20")
_CLOSED_NETWORKS = tuple(ipaddress.ip_network(text) for text in _CLOSED)


@dataclass(frozen=True, slots=True)
class Target:
    """One request's address, taken apart once: everything later uses these fields and never the URL."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in plain form, for resolving relative redirects."""
        return f"{self.scheme}://{self.origin}{self.path}"


def parse_url(url: str) -> Target:
    """Take an http(s) URL apart, refusing whatever two parsers could read in two ways.

    Raises:
        ImageFetchError: another scheme, credentials, a backslash, blanks, control characters, or a malformed host.
    """
    if len(url) > _MAX_URL_CHARACTERS:
        raise ImageFetchError(f"The picture's URL has more than {_MAX_URL_CHARACTERS} characters.")
    if _FORBIDDEN_IN_URL.search(url):
        raise ImageFetchError(
            "The picture's URL holds a blank, a backslash, a control character or half a surrogate; percent-encode it."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode().lower()
    except (ValueError, UnicodeError):
        raise ImageFetchError("The picture's URL has a malformed host or port.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ImageFetchError("The picture's URL must start with http:// or https://.")
    if "@" in parts.netloc:
        raise ImageFetchError("The picture's URL must not hold a user name or password.")
    host = host.rstrip(".")
    if not _HOST.fullmatch(host):
        raise ImageFetchError("The picture's URL has a malformed host.")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
    return Target(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def is_global(address: str) -> bool:
    """Tell whether an IP address lies on the public internet, also behind any IPv4-in-IPv6 form."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_global(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_global(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_IPV6 or (ip.sixtofour is not None and not is_global(str(ip.sixtofour))):
            return False
    is_closed = any(ip in network for network in _CLOSED_NETWORKS if network.version == ip.version)
    return ip.is_global and not (is_closed or ip.is_multicast or ip.is_reserved)


def resolve_host(host: str, port: int) -> list[str]:
    """Return every address of a host, as the system's resolver has them."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def fetch(url: str, policy: ImagePolicy, resolve: Resolver = resolve_host) -> bytes:
    """Return the body behind an http(s) URL.

    Units: at most `limits.max_bytes` bytes and, redirects included, `limits.fetch_timeout_s` seconds, or what is left
    of its errand's.

    Raises:
        ImageFetchError: the URL is refused, unreachable, too slow, or answers with anything but 200.
        ImageTooLargeError: the body is longer than the limit.
    """
    most_s, errand, started_at = policy.limits.fetch_timeout_s, current_errand.get(), time.monotonic()
    if errand is not None and errand.left_s <= 0:
        raise ImageFetchError("The hosts of the request's pictures together took too long; send fewer, or their data.")
    try:
        return _follow(parse_url(url), policy, resolve, started_at + min(most_s, errand.left_s if errand else most_s))
    finally:
        if errand is not None:
            errand.left_s -= time.monotonic() - started_at


def _follow(target: Target, policy: ImagePolicy, resolve: Resolver, deadline: float) -> bytes:
    limits = policy.limits
    for _ in range(limits.max_redirects + 1):
        addresses = _checked_addresses(target, policy, resolve, deadline)
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


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


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
            self._connection.settimeout(min(_seconds_left(deadline), _POLL_S))
            with suppress(TimeoutError):
                return self._connection.recv_into(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self, _CHUNK_BYTES)


def _checked_addresses(target: Target, policy: ImagePolicy, resolve: Resolver, deadline: float) -> list[str]:
    """Resolve a host once and return its addresses, all of them allowed."""
    answers: list[str] = []

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            answers.extend(resolve(target.host, target.port))

    thread = threading.Thread(target=look_up, daemon=True)  # getaddrinfo has no time-out of its own
    thread.start()
    try:
        while thread.is_alive():
            check_wanted()
            thread.join(min(_seconds_left(deadline), _POLL_S))
    except TimeoutError:
        answers.clear()
    addresses = list(dict.fromkeys(answers))
    if not addresses:
        raise ImageFetchError("The host in the picture's URL could not be found.")
    if target.host not in policy.allowed_media_hosts:
        for address in addresses:
            if address not in policy.allowed_media_hosts and not is_global(address):
                raise ImageFetchError(
                    "The host in the picture's URL is not on the public internet. "
                    "An operator can allow it with allowed_media_hosts."
                )
    return addresses


def _connect(target: Target, addresses: Sequence[str], deadline: float) -> socket.socket:
    """Connect to the first of the checked addresses that answers; the certificate must be the host's."""
    failure: OSError = TimeoutError()
    for number, address in enumerate(addresses):
        try:
            share_s = _seconds_left(deadline) / (len(addresses) - number)
            connection = socket.create_connection((address, target.port), timeout=share_s)
        except OSError as error:
            failure = error
            continue
        if target.scheme == "http":
            return connection
        try:
            connection.settimeout(_seconds_left(deadline))
            return ssl.create_default_context().wrap_socket(connection, server_hostname=target.host)
        except (OSError, ValueError):
            connection.close()
            raise
    raise failure


def _request(connection: socket.socket, target: Target, limits: ImageLimits, deadline: float) -> bytes | str:
    """Send the request; return the body, or the URL that a redirect names."""
    lines = (f"GET {target.path} HTTP/1.1", f"Host: {target.origin}", *_HEADERS, "", "")
    connection.settimeout(_seconds_left(deadline))
    connection.sendall("\r\n".join(lines).encode("ascii"))
    response = http.client.HTTPResponse(_PacedReader(connection, limits, deadline), method="GET")  # type: ignore[arg-type]
    with response:
        response.begin()
        if response.status in _REDIRECTS:
            location = response.getheader("Location", "").encode("latin-1").decode(errors="replace")
            if not location:
                raise ImageFetchError("The picture's host redirects without saying where to.")
            return location if _FORBIDDEN_IN_URL.search(location) else urljoin(target.url, location)
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
