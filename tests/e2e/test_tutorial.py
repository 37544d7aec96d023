"""The tutorials, command by command, with the embedded model in the place of the 26B one."""

import http.server
import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.checkpoint.test_hub import Handler, Hub
from tests.processes import PATIENCE_S, run_command, start_process
from tilewise import demo
from tilewise.client import to_data_url

ROOT = Path(__file__).parents[2]
PAGES = ("en", "zh")
HUB_ID = "OpenGVLab/InternVL-Chat-V1-5"
QUESTION = "What is in the picture?"
COMMAND_S = 900.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of gradio's client itself
]


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / page / "tutorial.md").read_text("utf-8")
    return re.findall(r"^```(bash|bash server|python)\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def hub():
    served = Hub({file.name: file.read_bytes() for file in demo.model_folder().iterdir() if file.is_file()})

    class Renamed(Handler):
        hub = served

        def parse_request(self) -> bool:
            is_right = super().parse_request()
            self.path = self.path.replace(HUB_ID, "org/model")
            return is_right

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Renamed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(command: str, environment: dict[str, str], home: Path) -> Iterator[str]:
    """Start a server on a free port, give its address, and end it as a person would."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = home / f"server-{port}.log"
    script = f"source ~/tilewise/bin/activate; exec {command.strip()} --server-port {port}"
    with (
        log.open("wb") as output,
        start_process(["bash", "-c", script], env=environment, cwd=ROOT, stdout=output, stderr=output) as process,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert process.poll() is None, log.read_text("utf-8", "replace")
            try:
                with urllib.request.urlopen(
                    f"{address}/{'ready' if 'api_server' in command else ''}", timeout=PATIENCE_S
                ):
                    break
            except OSError:
                assert time.monotonic() < deadline, log.read_text("utf-8", "replace")
                time.sleep(0.2)
        yield address
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_S) in (0, 130), log.read_text("utf-8", "replace")


def ask_page(address: str, home: Path) -> str:
    """Upload the picture, type the instruction, press Enter."""
    import gradio_client

    program = gradio_client.Client(address, verbose=False, download_files=str(home))
    question = {"text": QUESTION, "files": [gradio_client.handle_file(str(demo.picture_path()))]}
    answer, *_ = program.predict(question, api_name="/chat", temperature=0, max_tokens=16)
    return answer


def ask_server(base_url: str) -> str:
    picture: Any = {"type": "image_url", "image_url": {"url": to_data_url(demo.picture_path())}}
    content = [picture, {"type": "text", "text": QUESTION}]
    with openai.OpenAI(base_url=base_url, api_key="-", max_retries=0) as client:
        (model,) = client.models.list().data
        answer = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=16
        )
    return answer.choices[0].message.content or ""


def play_with(server: str, address: str, page: str, environment: dict[str, str], home: Path) -> list[str]:
    """What the tutorial does next with a server that runs: its answers to one question."""
    if "serve gradio" in server:
        return [ask_page(address, home)]
    ((command, base_path),) = re.findall(
        r"`(tilewise serve gradio --server )http://[^`]*:23333`.*`http://[^`]*:23333(/v1)`",
        (ROOT / "docs" / page / "tutorial.md").read_text("utf-8"),
    )
    with running(command + address, environment, home) as attached:
        return [ask_page(attached, home), ask_server(address + base_path)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_tutorial_runs(page, tmp_path, hub):
    pytest.importorskip("gradio")
    pytest.importorskip("hatchling")  # so that pip builds the package without fetching anything
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HF_", "PYTHON"))},
        "HOME": str(tmp_path),
        "WEIGHTS": str(demo.model_folder()),
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        # The new environment sees this one's packages, and pip adds only the package itself.
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    found = blocks(page)
    assert {kind for kind, _ in found} == {"bash", "bash server", "python"}
    answers: list[str] = []
    for kind, text in found:
        if kind == "bash server":
            with running(text, environment, tmp_path) as address:
                answers += play_with(text, address, page, environment, tmp_path)
            continue
        activate = "test ! -e ~/tilewise || source ~/tilewise/bin/activate\n"
        command = ["bash", "-e", "-o", "pipefail", "-c", activate + text]
        if kind == "python":
            (tmp_path / "offline.py").write_text(text, "utf-8")
            command = ["bash", "-e", "-c", activate + "python ~/offline.py"]
        done = run_command(command, env=environment, cwd=ROOT, timeout_s=COMMAND_S)
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        if kind == "python":
            assert done.stdout.startswith("Response(text=")
    assert len(answers) == 3
    assert answers[0]
    assert len(set(answers)) == 1
    assert (tmp_path / "tilewise" / "bin" / "tilewise").is_file()
    shutil.rmtree(tmp_path / "tilewise")


def test_both_tutorials_have_the_same_commands():
    english, chinese = (
        [(kind, re.sub(r"#.*|'[^']*'|--prompt (\"[^\"]*\"|\S+)", "", text)) for kind, text in blocks(page)]
        for page in PAGES
    )
    assert english == chinese
