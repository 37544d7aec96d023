"""Names that strangers let point to this machine: their pages' requests are told by Host and Origin."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tilewise.serving.http.gateway import Gateway
from tilewise.serving.http.hosts import is_cross_origin, is_rebound

OURS = ("localhost", "LOCALHOST:80", "127.0.0.1:23333", "[::1]:23333", "192.168.1.5", "a.localhost", "my-machine:1")
OTHERS = ("evil.example", "evil.example:23333", "127.0.0.1.evil.example", "localhost@evil.example", "evil.example.")


def make_scope(server: Any, host: str, *origins: str) -> dict[str, Any]:
    return {"server": server, "headers": [(b"host", host.encode()), *((b"origin", o.encode()) for o in origins)]}


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"])
def test_over_loopback_only_names_that_nobody_can_register_are_ours(server: str) -> None:
    assert [host for host in OURS if is_rebound(make_scope((server, 80), host))] == []
    assert [host for host in OTHERS if not is_rebound(make_scope((server, 80), host))] == []
    assert is_rebound({"server": (server, 80), "headers": [(b"host", b"localhost"), (b"host", b"evil.example")]})


def test_names_that_are_listed_are_ours_too() -> None:
    scope = make_scope(("127.0.0.1", 80), "page.example:8443")
    assert not is_rebound(scope, ["page.example"])
    assert not is_rebound(scope, [".example"])
    assert is_rebound(scope, ["age.example", "example"])


@pytest.mark.parametrize("server", [("10.0.0.2", 80), ("/run/socket", None), None])
def test_beyond_loopback_any_name_may_be_ours_unless_some_are_listed(server: Any) -> None:
    assert not is_rebound(make_scope(server, "tilewise.example"))
    assert is_rebound(make_scope(server, "tilewise.example"), ["page.example"])
    assert not is_rebound(make_scope(server, "192.168.1.5:6006"), ["page.example"])


@pytest.mark.parametrize("origin", ["http://localhost:8000", "null", "https://evil.example", "http://localhost"])
def test_a_page_of_another_host_or_port_is_another_origin(origin: str) -> None:
    assert is_cross_origin(make_scope(None, "localhost:6006", origin))
    assert is_cross_origin(make_scope(None, "localhost:6006", "http://localhost:6006", origin))
    assert not is_cross_origin(make_scope(None, "localhost:6006", "http://localhost:6006"))
    assert not is_cross_origin(make_scope(None, "localhost:6006"))


@pytest.mark.parametrize(("keys", "is_open"), [((), False), (("k",), True)])
def test_without_keys_an_api_on_loopback_answers_no_name_of_strangers(keys: tuple[str, ...], is_open: bool) -> None:
    door = Gateway(PlainTextResponse("in"), keys)

    async def ask(path: str, host: str) -> httpx.Response:
        transport = httpx.ASGITransport(door)
        headers = {"Host": host, "Authorization": "Bearer k"}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.get(path, headers=headers)

    for path in ("/v1/models", "/metrics", "/openapi.json", "/nope"):
        refused = asyncio.run(ask(path, "evil.example"))
        assert refused.status_code == (200 if is_open else 421)
        assert is_open or refused.json()["error"]["code"] == "unknown_host"
        assert asyncio.run(ask(path, "localhost:23333")).text == "in"
    assert asyncio.run(ask("/health", "evil.example")).text == "in"
