"""The client of the HTTP API against a server that says what the test tells it to."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.messages import mentions
from tests.processes import run_command
from tests.serving.openai.openai_double import USAGE, Double, Refusal
from tilewise.client import APIClient, chat_body, to_data_url
from tilewise.demo import picture_path
from tilewise.errors import CapacityError, EngineError, ImageError, InputError, PromptTooLongError, TilewiseError
from tilewise.inputs.media.sources import load_image

GO_ON = ("word ",) * 10_000
LEAVE_S = 10.0


@pytest.fixture
def double() -> Iterator[Double]:
    with Double() as running:
        yield running


def test_models_health_and_tokens(double: Double) -> None:
    client = APIClient(double.url + "/v1/", api_key="secret")
    assert client.available_models == ["demo"]
    assert client.describe_models()[0]["max_model_len"] == 8192
    assert client.health()
    assert not client.is_ready()  # the double has no such route
    assert client.encode("héllo") == (list("héllo".encode()), 6)
    assert client.decode(client.encode("héllo")[0]) == "héllo"
    assert {key for _, _, key in double.asked} == {"Bearer secret"}


def test_without_a_key_none_is_sent(double: Double) -> None:
    assert APIClient(double.url).available_models
    assert double.asked[0][2] is None


def test_a_text_is_a_conversation_and_options_travel_but_for_none(double: Double) -> None:
    answer = APIClient(double.url).chat_completions_v1("demo", "hello", temperature=0, seed=None)
    assert answer["choices"][0]["message"]["content"] == "The answer is 42."
    assert double.bodies == [
        {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "stream": False, "temperature": 0}
    ]


def test_a_stream_joins_to_the_answer_and_ends_with_what_it_took(double: Double) -> None:
    client = APIClient(double.url)
    chunks = list(client.chat_completions_v1("demo", "hello", stream=True))
    assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]) == "The answer is 42."
    assert chunks[-1]["usage"] == USAGE
    assert client.completions_v1("demo", "a")["choices"][0]["text"] == "The answer is 42."
    assert list(client.completions_v1("demo", "a", stream=True)) == chunks


def test_leaving_a_stream_closes_its_connection(double: Double) -> None:
    double.script, double.delay_s = lambda body: GO_ON, 0.01
    with closing(APIClient(double.url).chat_completions_v1("demo", "hello", stream=True)) as chunks:
        next(chunks)
    assert double.left.wait(LEAVE_S)


async def read_one(client: APIClient, body: dict[str, Any]) -> dict[str, Any]:
    async with aclosing(client.stream_chat(body)) as chunks:
        return await anext(chunks)


def test_leaving_an_asynchronous_stream_closes_its_connection(double: Double) -> None:
    double.script, double.delay_s = lambda body: GO_ON, 0.01
    chunk = asyncio.run(read_one(APIClient(double.url), chat_body("demo", "hello", stream=True)))
    assert chunk["choices"][0]["delta"]["content"] == "word "
    assert double.left.wait(LEAVE_S)


def test_pictures_travel_inside_the_request_as_they_are(double: Double) -> None:
    path, address = picture_path(), "https://example.org/a.png"
    image = Image.new("RGB", (3, 2), "red")
    urls = [path, str(path), image, address]
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    APIClient(double.url).chat_completions_v1("demo", [{"role": "user", "content": [*parts, text_part("what?")]}])
    sent = double.bodies[0]["messages"][0]["content"]
    assert [part["image_url"]["detail"] for part in sent[:4]] == ["low"] * 4
    first, second, third, fourth = (part["image_url"]["url"] for part in sent[:4])
    assert first == second == to_data_url(path)
    assert load_image(first).tobytes() == load_image(path).tobytes()
    assert load_image(third).tobytes() == image.tobytes()
    assert fourth == address
    assert sent[4] == text_part("what?")
    assert parts[0]["image_url"]["url"] is path


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_a_picture_that_is_not_there_is_told_before_anything_is_sent(double: Double) -> None:
    part = {"type": "image_url", "image_url": {"url": "none.png"}}
    with pytest.raises(ImageError, match=r"none\.png"):
        APIClient(double.url).chat_completions_v1("demo", [{"role": "user", "content": [part]}])
    assert not double.asked


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "context_length_exceeded", PromptTooLongError),
        (400, "something new", InputError),
        (401, "invalid_api_key", InputError),
        (404, "model_not_found", InputError),
        (429, "rate_limited", CapacityError),
        (503, "capacity", CapacityError),
        (500, "engine_error", EngineError),
        (502, "", EngineError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_become_our_errors_in_the_servers_words(
    double: Double, status: int, code: str, kind: type[TilewiseError], stream: bool
) -> None:
    double.script = lambda body: Refusal(status, "The words of the server.", code)
    with pytest.raises(kind, match="The words of the server") as caught:
        list(APIClient(double.url).chat_completions_v1("demo", "hello", stream=stream))
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert caught.value.code == (code or kind.code)


def test_an_error_within_a_stream_is_raised_after_what_came_before_it(double: Double) -> None:
    double.script = lambda body: Refusal(200, "The engine is gone.", "engine_error", before=("half ",))
    chunks = APIClient(double.url).chat_completions_v1("demo", "hello", stream=True)
    assert next(chunks)["choices"][0]["delta"]["content"] == "half "
    with pytest.raises(EngineError, match="engine is gone"):
        next(chunks)


def test_no_server_is_an_engine_error_that_says_how_to_start_one(double: Double) -> None:
    with Double() as gone:
        client = APIClient(gone.url)
    assert not client.health()
    with pytest.raises(EngineError, match="tilewise serve api_server"):
        client.chat_completions_v1("demo", "hello")


def test_another_address_of_a_server_is_a_refusal(double: Double) -> None:
    client = APIClient(double.url + "/elsewhere")
    with pytest.raises(InputError, match="status 404"):
        client.describe_models()


def test_a_silent_server_is_an_engine_error(double: Double) -> None:
    double.delay_s = 60.0
    chunks = APIClient(double.url, timeout=3.0).chat_completions_v1("demo", "hello", stream=True)
    assert next(chunks)
    with pytest.raises(EngineError, match=mentions(double.url)):
        next(chunks)


@pytest.mark.parametrize("url", ["ftp://host", "http://", ""])
def test_an_address_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no server"):
        APIClient(url)


def test_loopback_is_never_asked_of_a_proxy(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert APIClient(double.url.removeprefix("http://")).available_models == ["demo"]


def test_importing_the_client_brings_no_torch() -> None:
    source = Path(__file__).resolve().parents[1] / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import tilewise.client; sys.exit('torch' in sys.modules)"
    assert run_command([sys.executable, "-c", code]).returncode == 0
