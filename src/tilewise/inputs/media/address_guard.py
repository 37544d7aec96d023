"""Where a picture's URL may lead: taken apart once, its host resolved once, every address it has checked.

Safety rests on addresses, not on spelling: all of a host's must be globally routable, or the operator's own choice.
"""

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from tilewise.errors import ImageFetchError
from tilewise.inputs.media.fetch_context import check_wanted
from tilewise.inputs.media.policy import ImagePolicy

Resolver = Callable[[str, int], Sequence[str]]
_DEFAULT_PORTS = {"http": 80, "https": 443}
FORBIDDEN_IN_URL = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*")
_MAX_URL_CHARACTERS = 8192
POLL_S = 0.25
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
    if FORBIDDEN_IN_URL.search(url):
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


def seconds_left(deadline: float) -> float:
    """Seconds until a time of `time.monotonic`; a `TimeoutError` where it has come."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def checked_addresses(target: Target, policy: ImagePolicy, resolve: Resolver, deadline: float) -> list[str]:
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
            thread.join(min(seconds_left(deadline), POLL_S))
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
