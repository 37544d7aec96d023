"""Fixtures of the transport's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from tests.processes import run_command
from tests.serving.http.http_server import HttpServer


@pytest.fixture
def open_server() -> Iterator[Callable[..., HttpServer]]:
    servers: list[HttpServer] = []

    def open_one(*args: Any, **options: Any) -> HttpServer:
        servers.append(HttpServer(*args, **options))
        return servers[-1]

    yield open_one
    for server in servers:
        server.close()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    if which("openssl") is None:
        pytest.skip("making a certificate needs the openssl command")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", *curve, *subject]
    run_command([*command, "-keyout", key, "-out", certificate], check=True)
    return certificate, key
