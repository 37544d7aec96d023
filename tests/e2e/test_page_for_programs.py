"""A program calls the page's function, and the page the API: two processes as users start them, one answer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio (the extra `ui`) is not installed")
import gradio_client

from tests.clients.question import MAX_TOKENS, MORE, QUESTION, SYSTEM, ask
from tests.clients.running import KEYS, RunningServer
from tests.clients.running import server as server  # a fixture
from tests.conftest import REPOSITORY
from tests.e2e.test_tutorial import free_port
from tests.processes import PATIENCE_S, start_process
from tilewise.demo import picture_path

# Of gradio's client itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "system": SYSTEM}


@pytest.fixture(scope="module")
def address(server: RunningServer) -> Iterator[str]:
    """Of a page that is attached to a server elsewhere."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "TILEWISE_API_KEY": KEYS[0]}
    command = [sys.executable, "-m", "tilewise", "serve", "gradio", "--server", server.url]
    command += ["--server-port", str(free_port())]
    with start_process(command, stderr=subprocess.PIPE, env=environment, encoding="utf-8") as page:
        assert page.stderr is not None
        opened = next((line for line in iter(page.stderr.readline, "") if line.startswith("Open ")), None)
        assert opened is not None, "the page did not open"
        yield opened.split()[1]
        page.terminate()
        page.wait(PATIENCE_S)


@pytest.fixture
def program(address: str, tmp_path: Path) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(tmp_path))


def test_a_program_hears_from_the_page_what_the_api_says_also_in_the_second_turn(
    program: Any, server: RunningServer
) -> None:
    question = {"text": QUESTION, "files": [gradio_client.handle_file(str(picture_path()))]}
    first, look, curl, sdk, _ = program.predict(question, api_name="/chat", **SETTINGS)
    expected = ask(server)
    assert first == expected["text"]
    assert f"{expected['prompt_tokens']:,}" in look
    assert f"{server.url}/v1" in curl
    assert f"{server.url}/v1" in sdk
    assert not any(key in curl + sdk for key in KEYS)
    second, *_ = program.predict({"text": MORE, "files": []}, api_name="/chat", **SETTINGS)
    assert second == ask(server, ("assistant", first), ("user", MORE))["text"]


def test_what_the_server_refuses_is_told_in_the_answers_place(program: Any) -> None:
    said, *_ = program.predict({"text": "a " * 40_000, "files": []}, api_name="/chat", **SETTINGS)
    assert said.startswith("⚠️")
    assert "8192" in said
