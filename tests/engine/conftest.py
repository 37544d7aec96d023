"""Engines that follow a script, behind either transport."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.fakes import TRANSPORTS
from tilewise.engine.client import EngineClient

Open = Callable[[str], EngineClient]


@pytest.fixture
def fake_engine_path(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find the fakes."""
    monkeypatch.setenv("PYTHONPATH", str(repository))


@pytest.fixture(params=list(TRANSPORTS))
def open_client(request: pytest.FixtureRequest, fake_engine_path: None) -> Iterator[Open]:
    """Start an engine with a script, and close it after the test."""
    clients: list[EngineClient] = []

    def start(script: str) -> EngineClient:
        clients.append(TRANSPORTS[request.param](script))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
