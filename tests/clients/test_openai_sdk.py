"""The official SDK drives every endpoint of a real server."""

import asyncio
import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.clients.running import KEYS, MODEL, RunningServer
from tilewise.demo import picture_path

DATA_URL = "data:image/png;base64," + base64.b64encode(picture_path().read_bytes()).decode()
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 6}


def ask(text: str, *urls: str, detail: str = "auto") -> list[Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url, "detail": detail}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[0], max_retries=0) as client:
        yield client


@pytest.fixture
def picture_host(tmp_path: Path) -> Iterator[str]:
    """The bundled picture at a loopback address."""
    (tmp_path / "picture.png").write_bytes(picture_path().read_bytes())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_port}/picture.png"
        host.shutdown()


def test_models_tell_their_length_and_what_a_picture_costs(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    facts: Any = client.models.retrieve(MODEL)
    assert model.id == facts.id == MODEL
    assert facts.max_model_len == 8192
    assert facts.tilewise["tokens_per_tile"] == 256
    assert facts.tilewise["is_demo"] is True


def test_a_picture_by_data_url_and_by_an_allowed_url_gives_the_same_answer(
    client: openai.OpenAI, picture_host: str
) -> None:
    answers = [
        client.chat.completions.create(messages=ask("什么？", url), **GREEDY) for url in (DATA_URL, picture_host)
    ]
    by_data, by_url = answers
    assert by_data.choices[0].message.content == by_url.choices[0].message.content
    usage = by_data.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.model_dump()["image_tokens"] == 7 * 256
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert by_data.choices[0].finish_reason in ("stop", "length")


def test_detail_and_dynamic_patch_bound_the_tiles(client: openai.OpenAI) -> None:
    def count(image_url: dict[str, Any]) -> int:
        content: Any = [{"type": "image_url", "image_url": {"url": DATA_URL, **image_url}}]
        answer = client.chat.completions.create(messages=[{"role": "user", "content": content}], **GREEDY)
        details: Any = answer.usage
        return details.prompt_tokens_details.image_tokens // 256

    assert count({"detail": "low"}) == 1
    assert count({"detail": "high"}) == 7
    assert count({"max_dynamic_patch": 2}) == 3


def test_several_pictures_and_several_turns_keep_their_places(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(messages=ask("Two?", DATA_URL, DATA_URL, detail="low"), **GREEDY)
    said: Any = first.choices[0].message.model_dump()
    turns = [*ask("Two?", DATA_URL, DATA_URL, detail="low"), said, *ask("And?", DATA_URL, detail="low")]
    second = client.chat.completions.create(messages=turns, **GREEDY)
    usages: list[Any] = [first.usage, second.usage]
    assert [usage.prompt_tokens_details.image_tokens for usage in usages] == [2 * 256, 3 * 256]
    assert usages[1].prompt_tokens_details.cached_tokens >= 2 * 256


def collect(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_a_stream_opens_with_the_role_and_ends_with_reason_and_usage(client: openai.OpenAI) -> None:
    messages = ask("count", DATA_URL, detail="low")
    stream = client.chat.completions.create(
        messages=messages, stream=True, stream_options={"include_usage": True}, n=2, **GREEDY
    )
    chunks = list(stream)
    whole = client.chat.completions.create(messages=messages, n=2, **GREEDY)
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert choices[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1].finish_reason == whole.choices[index].finish_reason
        assert collect(chunks, index) == whole.choices[index].message.content
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stop_token_ends_the_answer_and_a_stop_word_is_not_in_it(client: openai.OpenAI) -> None:
    free = client.chat.completions.create(messages=ask("go on"), logprobs=True, **{**GREEDY, "max_tokens": 4})
    said = free.choices[0].logprobs
    assert said is not None
    assert said.content is not None
    tokens = [entry.token for entry in said.content]
    stopped = client.chat.completions.create(messages=ask("go on"), stop=[tokens[1]], **{**GREEDY, "max_tokens": 4})
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens <= 2


def test_logprobs_hold_bytes_and_as_many_others_as_asked(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=ask("x"), logprobs=True, top_logprobs=3, **GREEDY)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert answer.usage is not None
    for entry in told.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token


def tokens_of(answer: ChatCompletion, index: int = 0) -> list[str]:
    told = answer.choices[index].logprobs
    assert told is not None
    return [entry.token for entry in told.content or []]


def test_a_seed_repeats_four_choices_that_differ_among_themselves(client: openai.OpenAI) -> None:
    def sample() -> list[list[str]]:
        answer = client.chat.completions.create(
            model=MODEL, messages=ask("x"), n=4, seed=-7, temperature=2, max_tokens=8, logprobs=True,
            extra_body={"top_k": 0, "ignore_eos": True},
        )  # fmt: skip
        return [tokens_of(answer, index) for index in range(4)]

    first, second = sample(), sample()
    assert first == second
    assert len({tuple(tokens) for tokens in first}) == 4


def test_a_bias_by_string_id_and_bad_temperature_zero_are_honoured(
    client: openai.OpenAI, server: RunningServer
) -> None:
    with server.http() as http:
        (token_id,) = http.post("/tokenize", json={"prompt": "a"}).json()["tokens"]
    answer = client.chat.completions.create(messages=ask("x"), logit_bias={str(token_id): 100}, logprobs=True, **GREEDY)
    assert tokens_of(answer) == ["a"] * 6


def test_min_tokens_and_ignore_eos_hold_the_end_off(client: openai.OpenAI) -> None:
    for extra in ({"min_tokens": 6}, {"ignore_eos": True}):
        answer = client.chat.completions.create(messages=ask("x"), extra_body=extra, **GREEDY)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 6


def test_completions_go_on_without_the_template(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="one two", logprobs=1, **GREEDY)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens < 10
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert len(told.tokens) == len(told.text_offset) == answer.usage.completion_tokens
    pieces = list(client.completions.create(prompt="one two", stream=True, **GREEDY))
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == answer.choices[0].text
    assert pieces[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_responses_answer_texts_and_pictures(client: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": DATA_URL, "detail": "low"},
    ]
    answer = client.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[{"role": "user", "content": content}],
        max_output_tokens=4,
        temperature=0,
    )
    assert answer.status in ("completed", "incomplete")
    assert answer.usage is not None
    assert answer.usage.output_tokens <= 4
    assert answer.usage.input_tokens > 256
    assert answer.output_text
    again = client.responses.create(
        model=MODEL,
        max_output_tokens=4,
        input=[
            {"role": "user", "content": "a"},
            *[item.model_dump() for item in answer.output],  # pyright: ignore
            {"role": "user", "content": "b"},
        ],
    )
    assert again.id != answer.id


def test_a_responses_stream_has_every_event_and_the_same_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "input": "hi", "max_output_tokens": 4, "temperature": 0}
    with client.responses.stream(**options) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    last: Any = events[-1]
    assert last.response.output_text == client.responses.create(**options).output_text


def test_the_async_client_streams_many_at_once(server: RunningServer) -> None:
    async def stream(client: openai.AsyncOpenAI, number: int) -> str:
        chunks: Any = await client.chat.completions.create(messages=ask(f"{number}"), stream=True, **GREEDY)
        return collect([chunk async for chunk in chunks])

    async def compare() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEYS[0], max_retries=0) as client:
            together = await asyncio.gather(*(stream(client, number) for number in range(8)))
            assert together == [await stream(client, number) for number in range(8)]

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"temperature": 2.5}, 400, "temperature", "invalid_request"),
        ({"extra_body": {"best_of": 1}}, 400, "best_of", "invalid_request"),
        ({"messages": ask("x", "data:image/png;base64,AAAA")}, 400, None, "invalid_image"),
        ({"messages": ask("word " * 40_000)}, 400, "messages", "context_length_exceeded"),
        ({"model": "gpt-x"}, 404, "model", "model_not_found"),
    ],
)
def test_errors_have_their_class_status_param_and_code(
    client: openai.OpenAI, change: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    kind = {400: openai.BadRequestError, 404: openai.NotFoundError}[status]
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"messages": ask("x"), **GREEDY, **change})
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (status, param, code)
    assert caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(server: RunningServer) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_tokenize_and_detokenize_are_each_others_inverse(server: RunningServer) -> None:
    with server.http() as http:
        told = http.post("/tokenize", json={"prompt": "描述 a picture"}).json()
        assert told["count"] == len(told["tokens"])
        assert http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "描述 a picture"}
        messages = http.post("/tokenize", json={"messages": ask("x", DATA_URL)}).json()
    assert messages["count"] > 7 * 256
