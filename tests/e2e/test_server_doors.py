"""A server as users start it, over https, with more visitors than it has places."""

import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from shutil import which
from urllib.parse import urlsplit

import pytest

from tests.clients.running import MODEL, run_server
from tests.clients.test_openai_sdk import DATA_URL
from tests.processes import PATIENCE_S, run_command

CONTENT = [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": "x"}]
ASK = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": CONTENT}]}


@pytest.mark.skipif(which("openssl") is None, reason="making a certificate needs the openssl command")
def test_an_https_server_full_of_silent_visitors_answers_and_tells_what_pictures_took(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost -addext"
    command = ["openssl", *make.split(), "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    run_command(command, check=True)
    flags = ("--max-connections", "16", "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    with ExitStack() as stack:
        server = stack.enter_context(run_server(*flags))
        parts = urlsplit(server.url)
        assert parts.scheme == "https"
        address = (parts.hostname, parts.port)
        silent = [stack.enter_context(socket.create_connection(address, timeout=PATIENCE_S)) for _ in range(64)]
        assert not any(connection.recv(1) for connection in silent[:48])
        with server.http(verify=ssl.create_default_context(cafile=certificate)) as http:
            assert http.get("/health").json() == {"status": "ok"}
            assert http.post("/v1/chat/completions", json=ASK).status_code == 200
            lines = http.get("/metrics").text.splitlines()
        told = {line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if "_count{" in line}
        assert told["tilewise:picture_decode_seconds_count"] == 1
        assert told["tilewise:picture_fetch_seconds_count"] == 0
