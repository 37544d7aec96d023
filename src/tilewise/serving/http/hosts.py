"""Whether a request was meant for this server, by its Host and Origin: browsers carry requests of strangers' pages.

A page of evil.example may let that name point to 127.0.0.1 (DNS rebinding); what it then sends here is told from
this machine's own requests by the Host alone. A page that asks another host than its own is told by its Origin.
"""

import contextlib
import ipaddress
import re
from collections.abc import Collection
from typing import Any

_PORT, _SCHEME = re.compile(r":\d*$"), re.compile(r"^https?://")


def is_rebound(scope: Any, allowed_hosts: Collection[str] = ()) -> bool:
    """Whether an ASGI request came over loopback under a name that strangers may have made point here.

    `allowed_hosts` are taken beside this machine's own names; one that begins with a dot stands for all names below
    it. Where any are given, they hold beyond loopback too.
    """
    is_open = not allowed_hosts and not _is_over_loopback(scope)
    return not is_open and not all(_is_known(_name(given), allowed_hosts) for given in _read(scope, b"host"))


def is_cross_origin(scope: Any, allowed_hosts: Collection[str] = ()) -> bool:
    """Whether a page of another origin sent an ASGI request; those of `allowed_hosts` are as good as its own."""
    hosts = _read(scope, b"host")
    origins = [_SCHEME.sub("", given) for given in _read(scope, b"origin")]
    return any([origin] != hosts and not _is_listed(_name(origin), allowed_hosts) for origin in origins)


def _is_over_loopback(scope: Any) -> bool:
    with contextlib.suppress(ValueError):  # no address: a socket of the file system, or none at all
        address = ipaddress.ip_address((scope.get("server") or ("",))[0])
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return False


def _read(scope: Any, header: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for name, value in scope["headers"] if name == header]


def _name(netloc: str) -> str:
    """The name or address, without its port."""
    return _PORT.sub("", netloc).strip("[]").rstrip(".")


def _is_known(name: str, allowed_hosts: Collection[str]) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    # Nobody can register a name of one part, or one below these two.
    return "." not in name or name.endswith((".localhost", ".internal")) or _is_listed(name, allowed_hosts)


def _is_listed(name: str, allowed_hosts: Collection[str]) -> bool:
    return any(name.endswith(host) if host.startswith(".") else name == host for host in allowed_hosts)
