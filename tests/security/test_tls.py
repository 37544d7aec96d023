"""The API over https: whom it answers, and in which versions of TLS; a real server, a certificate of its own."""

import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.clients.running import KEYS, MODEL, RunningServer, run_server
from tests.clients.test_openai_sdk import DATA_URL, GREEDY, ask, collect
from tests.processes import PATIENCE_S, run_command
from tilewise.client import APIClient

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by the openssl command")

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def create_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of localhost and 127.0.0.1, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    run_command([*command, "-keyout", key, "-out", certificate], check=True)
    return certificate, key


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return create_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(certificate: tuple[Path, Path]) -> Iterator[RunningServer]:
    file, key = map(str, certificate)
    with run_server("--ssl-certfile", file, "--ssl-keyfile", key, "--session-len", "4096", keys=KEYS) as running:
        yield running


@pytest.fixture
def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


def shake_hands(server: RunningServer, context: ssl.SSLContext, name: str = "localhost") -> str | None:
    """The version that both sides agree on."""
    address = urlsplit(server.url)
    with (
        socket.create_connection((str(address.hostname), address.port or 0), timeout=PATIENCE_S) as connection,
        context.wrap_socket(connection, server_hostname=name) as secured,
    ):
        secured.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.1 200 ")
        return secured.version()


def test_a_client_that_trusts_the_certificate_is_answered(server: RunningServer, trusting: ssl.SSLContext) -> None:
    assert server.url.startswith("https://")
    with server.http(verify=trusting, trust_env=False) as http:
        assert http.get("/ready").json() == {"status": "ready"}
        assert http.get("/v1/models").json()["data"][0]["id"] == MODEL
    with server.http("wrong", verify=trusting, trust_env=False) as http:
        assert http.get("/v1/models").status_code == 401


def test_a_client_that_does_not_trust_it_or_knows_another_name_sends_nothing(
    server: RunningServer, trusting: ssl.SSLContext
) -> None:
    with server.http(trust_env=False) as http, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        http.get("/health")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, trusting, "example.org")
    assert shake_hands(server, trusting) == "TLSv1.3"


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_plain_http_is_not_answered(server: RunningServer, path: str) -> None:
    address = urlsplit(server.url)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{address.netloc}{path}", trust_env=False, timeout=PATIENCE_S)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=PATIENCE_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(1000), b""))
    assert b"HTTP" not in received
    assert MODEL.encode() not in received


@pytest.mark.parametrize("version", VERSIONS)
def test_tls_of_today_is_spoken(server: RunningServer, trusting: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    trusting.minimum_version = trusting.maximum_version = version
    assert shake_hands(server, trusting) == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("name", ["TLSv1", "TLSv1_1"])
def test_older_tls_is_refused_by_the_server(server: RunningServer, trusting: ssl.SSLContext, name: str) -> None:
    trusting.set_ciphers("ALL:@SECLEVEL=0")  # without it this side would not even ask
    trusting.minimum_version = trusting.maximum_version = ssl.TLSVersion[name]
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server, trusting)
    # Either the server's last words, or none: asyncio may close before they are sent. Not a reason of this side.
    assert caught.value.reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNEXPECTED_EOF_WHILE_READING")


def test_the_official_sdk_asks_and_streams_over_https(server: RunningServer, trusting: ssl.SSLContext) -> None:
    options: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": KEYS[0], "max_retries": 0}
    with (
        openai.DefaultHttpxClient(verify=trusting, trust_env=False) as http,
        openai.OpenAI(**options, http_client=http) as client,
    ):
        question = ask("What is in the picture?", DATA_URL)
        whole = client.chat.completions.create(messages=question, **GREEDY)
        pieces = list(client.chat.completions.create(messages=question, stream=True, **GREEDY))
        assert whole.choices[0].message.content == collect(pieces)
        assert collect(pieces)
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(**options, http_client=http) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()


def test_our_own_client_trusts_what_ssl_cert_file_names(
    server: RunningServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not APIClient(server.url, KEYS[0]).health()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert APIClient(server.url, KEYS[0]).available_models


def test_a_client_that_leaves_over_tls_takes_its_answer_with_it(
    server: RunningServer, trusting: ssl.SSLContext
) -> None:
    def count(http: httpx.Client, name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"tilewise:requests_{name}"))

    with server.http(verify=trusting, trust_env=False) as http:
        body = {"model": MODEL, "messages": ask("x"), "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: "))
            assert json.loads(next(lines).removeprefix("data: "))["choices"]
        deadline = time.monotonic() + PATIENCE_S
        while count(http, "opened_total") != count(http, "ended_total"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        aborted = [line for line in http.get("/metrics").text.splitlines() if 'finished_reason="abort"' in line]
    assert len(aborted) == 2  # how many, and since when
