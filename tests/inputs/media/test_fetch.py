"""How long the pictures of one request are fetched, and for whom; what a URL may reach is held in tests/security."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes import PATIENCE_S
from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.errors import ImageFetchError
from tilewise.inputs.conversation import parse_prompt
from tilewise.inputs.media.fetch import fetch
from tilewise.inputs.media.fetch_context import use_fetch_context
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import prepare_image
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.profiles import PROFILES
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.types import GenerationConfig, TilingParameters

POLICY = ImagePolicy(ImageLimits(fetch_timeout_s=600.0), allowed_media_hosts=("127.0.0.1", "host.example"))


class SilentHost:
    """Accepts connections and says nothing; `reached` is set by the first."""

    def __init__(self) -> None:
        self.reached, self.connections = threading.Event(), list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/a.png"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection = self._listener.accept()[0]
            self.connections.append(connection)
            if connection.recv(4) != b"GET ":
                return
            self.reached.set()

    def close(self) -> None:
        with socket.create_connection(self._listener.getsockname()) as connection:
            connection.sendall(b"\0\0\0\0")
            self._thread.join()
        for held in (*self.connections, self._listener):
            held.close()


@pytest.fixture
def silent() -> Iterator[SilentHost]:
    host = SilentHost()
    yield host
    host.close()


def test_the_fetches_of_one_request_share_their_time(silent: SilentHost) -> None:
    with use_fetch_context(2.0, lambda: True):
        for reason in ("too slow", "together took too long"):
            with pytest.raises(ImageFetchError, match=reason):
                fetch(silent.url, POLICY)
    assert len(silent.connections) == 1


def run_unwanted(work: Callable[[], Any], begun: threading.Event) -> str:
    """What `work` raises when its caller has left after it had begun."""
    is_wanted, told = threading.Event(), list[str]()
    is_wanted.set()

    def run() -> None:
        with use_fetch_context(600.0, is_wanted.is_set), pytest.raises(ImageFetchError) as caught:
            work()
        told.append(str(caught.value))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert begun.wait(PATIENCE_S)
    is_wanted.clear()
    thread.join(PATIENCE_S)
    return told[0]


def test_a_fetch_that_nobody_wants_any_more_is_given_up(silent: SilentHost) -> None:
    assert "no longer wanted" in run_unwanted(lambda: fetch(silent.url, POLICY), silent.reached)


def test_a_name_that_nobody_wants_any_more_is_given_up() -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(_: str, __: int) -> list[str]:
        asked.set()
        answer.wait()
        return []

    assert "no longer wanted" in run_unwanted(lambda: fetch("http://host.example/a.png", POLICY, hang), asked)
    answer.set()


def test_between_pictures_it_is_seen_that_nobody_wants_them() -> None:
    loaded = list[object]()

    def count(source: Any, tiling: TilingParameters, policy: ImagePolicy) -> Any:
        loaded.append(source)
        return prepare_image(source, tiling, policy)

    folder = demo.model_folder()
    profile, picture = PROFILES["internvl-internlm2"], str(demo.picture_path())
    model, tokenizer = load_model_config(folder), load_tokenizer(folder)
    builder = RequestBuilder(model, 8192, tokenizer, profile, ImagePolicy(), TilingParameters(), count)
    messages = parse_prompt(("x", [picture, picture, picture]))
    with use_fetch_context(600.0, lambda: len(loaded) < 2), pytest.raises(ImageFetchError, match="no longer wanted"):
        builder.build(messages, GenerationConfig(), "r")
    assert len(loaded) == 2
