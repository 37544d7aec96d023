"""Chromium, a page over a double of the API, and a page over a real server with the embedded model."""

import contextlib
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.processes import PATIENCE_S, start_process
from tests.serving.openai.openai_double import Double, gradios_loops_closed
from tilewise.client import APIClient

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=found[0], args=flags)
        yield running
        running.close()


class Visitor:
    """One person at one page: what is asked is typed, clicked, dropped."""

    def __init__(self, tab: Any, address: str) -> None:
        self.tab = tab
        self.address = address

    def open(self, query: str = "") -> "Visitor":
        self.tab.goto(self.address + query)
        self.box.wait_for()
        self.tab.locator(".tw-head").wait_for()
        return self

    @property
    def box(self) -> Any:
        return self.tab.get_by_test_id("textbox").first

    @property
    def answers(self) -> Any:
        return self.tab.locator(".message.bot")

    def attach(self, *paths: Path) -> None:
        self.tab.set_input_files("input[type=file]", [str(path) for path in paths])
        self.tab.locator(".thumbnail-item").nth(len(paths) - 1).wait_for()

    def forget(self) -> None:
        """Take away what is told of earlier answers, so that waiting waits for the next."""
        self.tab.evaluate("document.querySelectorAll('.tw-facts').forEach(element => element.remove())")

    def ask(self, text: str) -> None:
        self.forget()
        self.box.fill(text)
        self.box.press("Enter")

    def wait(self) -> str:
        """Until the answer is whole; gives its text."""
        self.tab.locator(".tw-facts").wait_for(timeout=PATIENCE_S * 1000)
        self.tab.locator(".submit-button").wait_for()
        self.tab.evaluate("() => new Promise(requestAnimationFrame)")  # as it is painted
        return self.answers.last.inner_text()

    def press(self, name: str) -> None:
        self.tab.get_by_label(name, exact=True).last.click()

    def show(self, name: str) -> None:
        """Keep a picture of the page for the documentation, where TILEWISE_SCREENSHOTS names a folder."""
        if folder := os.environ.get("TILEWISE_SCREENSHOTS"):
            self.tab.screenshot(path=REPOSITORY / folder / f"{name}.png")


class Relay:
    """Stands between a browser and a page, and can cut every connection at once."""

    def __init__(self, address: str) -> None:
        self._target = (urlsplit(address).hostname, urlsplit(address).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.heads: list[bytes] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                browser, _ = self._listener.accept()
                page = socket.create_connection(self._target)
                self._sockets += [browser, page]
                threading.Thread(target=self._copy, args=(browser, page), daemon=True).start()
                threading.Thread(target=self._copy, args=(page, browser), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                self.heads.append(piece[:40])
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens tabs, and holds every request that they make to loopback."""
    contexts: list[Any] = []
    asked: list[str] = []

    def begin(address: str, locale: str = "en-US", size: tuple[int, int] = (1280, 800)) -> Visitor:
        context = browser.new_context(locale=locale, viewport={"width": size[0], "height": size[1]})
        context.on("request", lambda request: asked.append(request.url))
        contexts.append(context)
        return Visitor(context.new_page(), address)

    yield begin
    for context in contexts:
        context.close()
    away = [url for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")]
    assert {urlsplit(url).hostname for url in away} <= {"127.0.0.1"}
    assert away


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Opens a page in this process."""
    app: Any = pytest.importorskip("tilewise.page.app", reason="gradio (the extra `ui`) is not installed")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("stored"))
    opened: list[Any] = []

    def create(client: APIClient, **options: Any) -> str:
        opened.append(app.create_page(client))
        return app.launch_page(opened[-1], "127.0.0.1", free_port(), **options)

    with gradios_loops_closed():
        yield create
        for blocks in opened:
            blocks.close(verbose=False)


@pytest.fixture(scope="session")
def doubled_session(launch: Callable[[APIClient], str]) -> Iterator[tuple[str, Double]]:
    with Double() as double:
        yield launch(APIClient(double.url)), double


@pytest.fixture
def doubled(doubled_session: tuple[str, Double]) -> tuple[str, Double]:
    """A page whose answers the test writes."""
    _, double = doubled_session
    double.script, double.delay_s = Double().script, 0.0
    double.asked.clear()
    double.left.clear()
    return doubled_session


class LongWinded(APIClient):
    """Asks the model to go on where it would end, so that there is something to stop."""

    async def stream_chat(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        async for chunk in super().stream_chat({**body, "ignore_eos": True}):
            yield chunk


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, str]]:
    """The address and the key of `tilewise serve api_server` with the embedded model."""
    key, port = secrets.token_hex(16), free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "src"),
        "TILEWISE_API_KEYS": key,
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "tilewise",
        "serve",
        "api_server",
        "--server-port",
        str(port),
        "--log-level",
        "WARNING",
    ]
    with start_process(command, env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE_S
        while not APIClient(url, key).is_ready():
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not become ready"
            time.sleep(0.2)
        yield url, key
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def served(server: tuple[str, str], launch: Callable[[APIClient], str]) -> str:
    """The page over the real server."""
    return launch(APIClient(*server))


@pytest.fixture(scope="session")
def long_winded(server: tuple[str, str], launch: Callable[[APIClient], str]) -> str:
    """The same, with answers that go on."""
    return launch(LongWinded(*server))
