"""What strangers may send to the HTTP server, and what it then does: only refusals that tell nothing."""

import base64
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.running import KEYS, MODEL, RunningServer
from tests.clients.running import server as server  # a fixture
from tests.processes import PATIENCE_S
from tilewise.demo import picture_path

ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|site-packages|\.py\b|/(?:root|usr|home|tmp)/")


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def show(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {**ASK, "messages": [{"role": "user", "content": [part, {"type": "text", "text": "x"}]}]}


def create_png(width: int, height: int) -> str:
    """A black PNG by hand, so that a huge one costs no memory here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8))) if width * height < 10**6 else b""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def assert_refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not LEAK.search(response.text), response.text
    return error


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "../../etc/passwd", "/proc/self/environ", ""])
def test_no_local_file_is_read_for_a_client(http: httpx.Client, path: str) -> None:
    assert assert_refused(http.post("/v1/chat/completions", json=show(path)))["code"] == "invalid_image"


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (447, 449)])
def test_pictures_of_any_size_are_answered(http: httpx.Client, size: tuple[int, int]) -> None:
    assert http.post("/v1/chat/completions", json=show(create_png(*size))).status_code == 200


def test_no_error_tells_of_the_inside(http: httpx.Client) -> None:
    whole = picture_path().read_bytes()
    broken = base64.b64encode(whole[: len(whole) // 2]).decode()
    urls = (
        "data:image/png;base64,!!!!",
        f"data:image/png;base64,{broken}",
        "data:text/html,<b>",
        create_png(65500, 65500),
        "http://10.0.0.1/",
        "http://localhost:1/",
        "ftp://x/y",
        "http://[::1]/x",
        "\0",
    )
    for url in urls:
        response = http.post("/v1/chat/completions", json=show(url))
        assert_refused(response, 413 if "65500" in response.text or response.status_code == 413 else 400)
    for path in ("/nope", "/v1/../etc/passwd", "/v1/models/nope", "/%00", "/docs", "/redoc"):
        assert_refused(http.get(path), 404)
    assert_refused(http.put("/v1/models"), 405)


def test_the_prefix_cache_of_one_key_tells_another_nothing(server: RunningServer) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": "what one tenant says " * 40}]}

    def count_cached(key: str) -> int:
        with server.http(key) as client:
            usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    alice, bob = KEYS
    assert [count_cached(alice), count_cached(bob)] == [0, 0]
    assert count_cached(alice) > 0
    assert count_cached(bob) > 0


NUMBERS = {
    "temperature": (-0.1, 2.1),
    "top_p": (0, -1, 1.1),
    "top_k": (-1, 2**31),
    "min_p": (-0.1, 1.1),
    "n": (0, 17, 2**31),
    "max_tokens": (0, -1, 2**31),
    "max_completion_tokens": (0, 2**31),
    "min_tokens": (-1, 2**31),
    "seed": (2**63, -(2**63) - 1),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, -1, 10.1),
    "top_logprobs": (-1, 21),
}
EVERYWHERE = (1e308, -1e308, 2**65, "1", True, [], {})


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_outside_its_range_is_refused_by_name(http: httpx.Client, name: str) -> None:
    for value in (*NUMBERS[name], *EVERYWHERE):
        response = http.post("/v1/chat/completions", json={**ASK, "logprobs": True, name: value})
        assert assert_refused(response)["param"] == name, value


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
def test_what_is_no_number_is_no_json(http: httpx.Client, number: str) -> None:
    body = json.dumps(ASK)[:-1] + f', "temperature": {number}}}'
    response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert assert_refused(response)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", ["a"] * 17),
        ("stop", "a" * 257),
        ("stop", [""]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", [1] * 257),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {str(number): 1 for number in range(1025)}),
        ("messages", []),
        ("messages", [{"role": "user", "content": "x"}] * 4097),
        ("metadata", {"a": 1}),
        ("store", True),
        ("audio", {"voice": "x"}),
        ("functions", []),
        ("functions", None),
        ("prompt_embeds", "AAAA"),
        ("image_embeds", "AAAA"),
    ],
)
def test_lists_words_and_unknown_fields_are_bounded_or_refused_by_name(
    http: httpx.Client, field: str, value: Any
) -> None:
    error = assert_refused(http.post("/v1/chat/completions", json={**ASK, field: value}))
    assert (error["param"] or "").partition(".")[0] == field
    assert len(error["message"]) < 400


@pytest.mark.parametrize("kind", ["image_embeds", "video_url", "input_audio", "file"])
def test_parts_that_are_no_text_or_picture_are_refused_by_name(http: httpx.Client, kind: str) -> None:
    part = {"type": kind, kind: "AAAA"}
    error = assert_refused(
        http.post("/v1/chat/completions", json={**ASK, "messages": [{"role": "user", "content": [part]}]})
    )
    assert kind in error["message"]


def test_sixteen_pictures_are_the_most(http: httpx.Client) -> None:
    body = show(create_png(2, 2))
    body["messages"][0]["content"] *= 17
    assert "at most 16" in assert_refused(http.post("/v1/chat/completions", json=body))["message"]


@pytest.mark.parametrize(
    "body",
    ["[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65, "[" * 100_000, "[" + "1," * 300_000 + "1]", "", "{", "\xff"],
)
def test_deep_long_and_broken_bodies_are_refused(http: httpx.Client, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert_refused(http.post("/v1/chat/completions", content=body.encode("latin-1"), headers=headers))


def test_a_body_is_cut_at_64_mib_whatever_it_claims(http: httpx.Client) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * (1 << 20)

    for content in (stream(), b" " * (65 << 20)):
        response = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert_refused(response, 413)


def test_a_form_of_another_site_is_not_read(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", content=json.dumps(ASK), headers={"Content-Type": "text/plain"})
    assert_refused(response, 415)


def test_headers_are_bounded(http: httpx.Client) -> None:
    assert_refused(http.get("/v1/models", headers={"X-Long": "a" * 40_000}), 431)
    assert_refused(http.get("/v1/models", headers={f"X-{number}": "a" for number in range(120)}), 431)


@pytest.mark.parametrize("word", ["word ", "word, "])
def test_health_is_answered_while_huge_prompts_are_refused(
    server: RunningServer, http: httpx.Client, word: str
) -> None:
    """Nobody's /health waits for 20 MB to be tokenised: they are refused before, off the loop."""
    statuses: list[int] = []
    body = json.dumps({**ASK, "messages": [{"role": "user", "content": word * (4 << 20)}]}).encode()
    assert len(body) > 20 << 20

    def send() -> None:
        with server.http() as client:
            headers = {"Content-Type": "application/json"}
            statuses.extend(
                client.post("/v1/chat/completions", content=body, headers=headers).status_code for _ in range(3)
            )

    sender = threading.Thread(target=send)
    sender.start()
    slowest_s, num_asked = 0.0, 0
    while sender.is_alive():
        started = time.perf_counter()
        assert http.get("/health").status_code == 200
        slowest_s, num_asked = max(slowest_s, time.perf_counter() - started), num_asked + 1
    sender.join()
    print(f"/health: {num_asked} answers, the slowest in {slowest_s * 1000:.0f} ms")
    assert statuses == [400] * 3
    assert num_asked > 3


def test_every_route_but_two_needs_a_key(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        with server.http() as known:
            document = known.get("/openapi.json").json()
        routes = [(method, path) for path, item in document["paths"].items() for method in item]
        assert len(routes) == 11
        for method, path in [
            *routes,
            ("get", "/openapi.json"),
            ("get", "/nope"),
            ("get", "/health/"),
            ("get", "//health"),
        ]:
            status = client.request(method.upper(), path.replace("{name}", MODEL), json=None).status_code
            assert status == (200 if path in ("/health", "/ready") else 401), path
        assert document["paths"]["/health"]["get"].get("security") is None
        assert document["paths"]["/v1/models"]["get"]["security"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        f"Basic {KEYS[0]}",
        f"Bearer {KEYS[0]}x",
        f"Bearer {KEYS[0][:-1]}",
        KEYS[0],
        "Bearer \xff",
    ],
)
def test_what_is_not_exactly_a_key_is_none(server: RunningServer, authorization: str) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        response = client.get("/v1/models", headers=[(b"Authorization", authorization.encode("latin-1"))])
    assert assert_refused(response, 401)["type"] == "authentication_error"
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "lines",
    [
        "GET /v1/models HTTP/1.1\r\nHost: x/health?",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Original-URL: /health",
        "GET http://x/health/../v1/models HTTP/1.1\r\nHost: x",
        "GET /v1/models?/health HTTP/1.1\r\nHost: /health",
        f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\nAuthorization: Bearer {KEYS[0]}",
    ],
)
def test_no_host_header_or_odd_path_opens_the_door(server: RunningServer, lines: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(f"{lines}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"400", b"401"), answer


def test_other_sites_pages_get_no_leave(http: httpx.Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (http.get("/v1/models", headers=asked), http.options("/v1/chat/completions", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_it_listens_on_loopback_alone(server: RunningServer) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    tables = [Path(f"/proc/{server.process.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    listening = [row.split()[1] for table in tables for row in table.splitlines()[1:] if row.split()[3] == "0A"]
    ours = [address for address in listening if int(address.rsplit(":", 1)[1], 16) == port]
    assert ours == [f"0100007F:{port:04X}"]
