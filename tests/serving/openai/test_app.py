"""The application over an engine that says what the test tells it to, in one process and without sockets."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from tests.processes import PATIENCE_S
from tests.scripted import HookedBuilder, Script, ScriptedClient, TokenizerDouble, say
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Checkpoint, Engine
from tilewise.errors import EngineError, InputError
from tilewise.inputs.conversation import parse_prompt
from tilewise.inputs.request_builder import create_builder
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.serving.async_engine import AsyncEngine
from tilewise.serving.http.events import EventStream
from tilewise.serving.openai.app import create_app
from tilewise.serving.openai.exchange import MAX_LOGPROBS
from tilewise.serving.openai.schema.base import Body
from tilewise.serving.openai.schema.chat import ChatRequest
from tilewise.serving.openai.schema.responses import ResponsesRequest
from tilewise.serving.openai.schema.tokens import DetokenizeRequest
from tilewise.serving.service import Service
from tilewise.serving.stream import Stream
from tilewise.types import FinishReason, GenerationConfig, Request, StepOutput, TokenLogprob

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}


@dataclass
class App:
    """Sends one request after another; `submitted` is what the engine got."""

    engine: AsyncEngine
    client: ScriptedClient
    settings: dict[str, Any]

    def send(self, path: str, body: Any = None, *, method: str = "POST", **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(create_app(Service(self.engine, "m", **self.settings)))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, json=body, **options)

        return asyncio.run(run())

    def stream(self, path: str, body: Any) -> list[Any]:
        """The events' data, the last one as text where it is no JSON."""
        response = self.send(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]


MakeApp = Callable[..., App]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    apps: list[App] = []

    def make(script: Script, *, max_queued: int = 8, **settings: Any) -> App:
        model = replace(load_model_config(model_folder()), is_random=False)
        resolved = resolve(EngineConfig(), model, DeviceConfig("cpu"))
        client = ScriptedClient(script)
        checkpoint = Checkpoint(model_folder(), model)
        engine = AsyncEngine(create_builder(checkpoint.folder, checkpoint.model), max_queued=max_queued)
        engine.attach(Engine(client, resolved))
        apps.append(App(engine, client, settings))
        return apps[-1]

    yield make
    for app in apps:
        app.engine.close()
        assert app.engine.num_open == 0, "an answer was opened and never ended"


def respond(*parts: dict[str, Any]) -> dict[str, Any]:
    """The body of a request to the Responses API."""
    return {"model": "m", "input": [{"role": "user", "content": list(parts)}]}


def speak(tokenizer: Tokenizer, text: str) -> Script:
    """Say `text` token by token, special tokens by their names, and end with the template's stop."""

    def script(_: Request) -> list[StepOutput]:
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, tokenizer.special_tokens)) + ")", text):
            ids += [tokenizer.special_id(piece)] if piece in tokenizer.special_tokens else tokenizer.encode(piece)
        return say(ids, FinishReason.STOP, tokenizer.special_id("<|im_end|>"))

    return script


def test_a_call_is_told_whole_and_in_deltas(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    app = make_app(speak(tokenizer, 'I look.<|action_start|><|plugin|>\n{"name": "look", "parameters": {"a": 12}}'))
    body = {**ASK, "tools": [TOOL]}
    (choice,) = app.send("/v1/chat/completions", body).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "look", "arguments": '{"a": 12}'})
    *chunks, done = app.stream("/v1/chat/completions", body)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    told = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in told) == '{"a": 12}'
    assert [call.get("id") is not None for call in told] == [True] + [False] * (len(told) - 1)
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stop", [",", '"b"', "|", "<", "\n{"])
def test_a_stop_word_within_a_call_is_no_stop(make_app: MakeApp, tokenizer: Tokenizer, stop: str) -> None:
    arguments = '{"a": 12, "b": "pq"}'
    app = make_app(
        speak(
            tokenizer, f'See it <ref>x</ref>.<|action_start|><|plugin|>\n{{"name": "look", "parameters": {arguments}}}'
        )
    )
    (choice,) = app.send("/v1/chat/completions", {**ASK, "tools": [TOOL], "stop": [stop]}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("See it x.", "tool_calls")
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == [arguments]


def test_a_stop_word_in_what_is_said_before_a_call_ends_the_answer(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    app = make_app(speak(tokenizer, 'See it.<|action_start|><|plugin|>\n{"name": "look", "parameters": {}}'))
    (choice,) = app.send("/v1/chat/completions", {**ASK, "tools": [TOOL], "stop": ["it"]}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("See ", "stop")
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize(("is_skipped", "content"), [(True, "x[[1]]"), (False, "<ref>x</ref><box>[[1]]</box>")])
def test_special_tokens_are_shown_beside_tools_as_without(
    make_app: MakeApp, tokenizer: Tokenizer, is_skipped: bool, content: str
) -> None:
    app = make_app(speak(tokenizer, "<ref>x</ref><box>[[1]]</box>"))
    for more in ({}, {"tools": [TOOL]}):
        body = {**ASK, **more, "skip_special_tokens": is_skipped}
        assert app.send("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == content


def test_what_asks_for_nothing_more_is_accepted_beside_tools(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    app = make_app(speak(tokenizer, "Twelve."))
    plain = {"response_format": {"type": "text"}, "parallel_tool_calls": False}
    assert app.send("/v1/chat/completions", {**ASK, "tools": [TOOL], **plain}).status_code == 200
    assert "tool_calls" in (app.client.submitted[0].generation.response_format or "")
    said = {"type": "output_text", "text": "x", "annotations": [], "logprobs": []}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [said]},
        {"role": "user", "content": "y"},
    ]
    assert app.send("/v1/responses", {"model": "m", "input": turns}).json()["parallel_tool_calls"] is False


def test_a_stop_word_below_min_tokens_is_no_stop(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    ids = [token_id for letter in "ababab" for token_id in tokenizer.encode(letter)]
    app = make_app(lambda _: say(ids))
    for least, content in ((0, "a"), (1, "a"), (2, "aba"), (4, "ababa"), (6, "ababab")):
        body = {**ASK, "stop": ["b"], "min_tokens": least}
        assert app.send("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == content


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (ChatRequest, {**ASK, **{f"f{number}": 1 for number in range(5000)}}, "f0"),
        (ChatRequest, {**ASK, "logit_bias": {f"k{number}": 1 for number in range(5000)}}, "logit_bias"),
        (ChatRequest, {**ASK, "tools": ["a"] * 5000}, "tools.0"),
        (ChatRequest, {**ASK, "modalities": ["a"] * 5000}, "modalities.0"),
        (ResponsesRequest, {"model": "m", "input": ["a"] * 5000}, "input"),
        (DetokenizeRequest, {"tokens": ["a"] * 5000}, "tokens.0"),
    ],
)
def test_of_many_faults_few_are_looked_at(kind: type[Body], body: Any, param: str) -> None:
    with pytest.raises(InputError) as caught:
        kind.read(body)
    assert caught.value.param == param
    with pytest.raises((InputError, ValidationError)) as raised:
        kind.model_validate(body)
    assert isinstance(raised.value, InputError) or raised.value.error_count() <= 2


def test_a_turn_with_a_call_and_its_result_may_come_back(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    app = make_app(speak(tokenizer, "Twelve."))
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12"},
    ]
    response = app.send("/v1/chat/completions", {**ASK, "messages": messages, "tools": [TOOL]})
    assert response.json()["choices"][0]["message"]["content"] == "Twelve."


def test_a_stop_word_over_chunk_borders_ends_the_answer_and_the_engine(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    app = make_app(lambda _: say([token_id for letter in "abcdef" for token_id in tokenizer.encode(letter)]))
    body = {**ASK, "stop": ["de", "zz"]}
    (choice,) = app.send("/v1/chat/completions", body).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("abc", "stop")
    *chunks, _ = app.stream("/v1/chat/completions", body)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "abc"
    assert len(app.client.aborted) == 2


def test_an_error_after_the_first_byte_is_an_event_and_the_last(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    def fail(_: Request) -> list[StepOutput]:
        return [*say(tokenizer.encode("a"), None), StepOutput("", finish_reason=FinishReason.ERROR, error="It broke.")]  # type: ignore[arg-type]

    app = make_app(fail)
    assert app.stream("/v1/chat/completions", ASK)[-1] == {
        "error": {"message": "It broke.", "type": "server_error", "param": None, "code": "engine_error"}
    }
    assert app.send("/v1/chat/completions", ASK).status_code == 500


def test_a_fault_of_ours_tells_nothing(make_app: MakeApp) -> None:
    app = make_app(lambda _: say([5]))

    def fail() -> None:
        raise KeyError("the secret of 0x7f001234")

    app.engine.builder = HookedBuilder.wrap(app.engine.builder, before_build=fail)
    response = app.send("/v1/chat/completions", ASK)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"]


def test_a_logprob_of_minus_infinity_is_a_number_in_json(make_app: MakeApp) -> None:
    logprobs = (TokenLogprob(300, -0.5, ((300, -0.5), (301, float("-inf")))),)
    app = make_app(lambda _: [StepOutput("", (300,), logprobs, finish_reason=FinishReason.LENGTH)])
    (choice,) = app.send("/v1/chat/completions", {**ASK, "logprobs": True, "top_logprobs": 2}).json()["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -9999.0]


def test_defaults_are_lmdeploys_and_temperature_zero_is_greedy(make_app: MakeApp) -> None:
    app = make_app(lambda _: say([5]))
    app.send("/v1/chat/completions", ASK)
    app.send("/v1/chat/completions", {**ASK, "temperature": 0, "max_completion_tokens": 7, "seed": -1, "stop": "a"})
    sampled, greedy = (request.generation for request in app.client.submitted)
    assert (sampled.do_sample, sampled.temperature, sampled.top_p, sampled.top_k) == (True, 0.7, 1.0, 40)
    assert sampled.max_new_tokens == app.engine.builder.session_len
    assert (greedy.do_sample, greedy.max_new_tokens, greedy.random_seed, greedy.stop_words) == (
        False,
        7,
        2**64 - 1,
        ("a",),
    )


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
        ),
        (
            "/v1/responses",
            {
                "messages": None,
                "input": "x",
                "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
            },
        ),
    ],
)
def test_a_schema_reaches_the_engine(make_app: MakeApp, path: str, more: dict[str, Any]) -> None:
    app = make_app(lambda _: say([5]))
    body = {key: value for key, value in {**ASK, **more}.items() if value is not None}
    assert app.send(path, body).status_code == 200
    form = json.loads(app.client.submitted[0].generation.response_format or "")
    assert form["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**ASK, "n": 2}),
        ("/v1/completions", {"model": "m", "prompt": "x"}),
        ("/v1/responses", {"model": "m", "input": "x"}),
    ],
)
def test_the_engine_learns_whether_an_answer_is_streamed(make_app: MakeApp, path: str, body: dict[str, Any]) -> None:
    app = make_app(lambda _: say([5]))
    for is_streamed in (False, True):
        app.client.submitted.clear()
        assert app.send(path, {**body, "stream": is_streamed}).status_code == 200
        assert {request.is_streamed for request in app.client.submitted} == {is_streamed}


@pytest.mark.parametrize(
    ("path", "more", "name"),
    [
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 15}, "top_logprobs"),
        ("/v1/completions", {"messages": None, "prompt": "x", "logprobs": 15}, "logprobs"),
    ],
)
def test_logprobs_of_all_choices_and_tokens_together_are_bounded(
    make_app: MakeApp, path: str, more: dict[str, Any], name: str
) -> None:
    app = make_app(lambda _: say([5]))
    ask = {key: value for key, value in {**ASK, **more, "n": 16}.items() if value is not None}
    most = MAX_LOGPROBS // 16 // 16
    assert most < app.engine.builder.session_len
    assert app.send(path, {**ask, "max_tokens": most}).status_code == 200
    for max_tokens, number in ((most + 1, MAX_LOGPROBS + 256), (None, 256 * app.engine.builder.session_len)):
        response = app.send(path, {**ask, "max_tokens": max_tokens})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, name)
        for told in ("n=16", f"{name}=15", f"{number} logprobs", str(MAX_LOGPROBS), f"Lower n, {name} or max_tokens"):
            assert told in error["message"]
    assert app.send(path, {**ask, "n": 1}).status_code == 200, "one answer may be as long as the session"
    assert len(app.client.submitted) == 16 + 1


@pytest.mark.parametrize("form", [{"type": "tool_calls", "tools": []}, {"type": "xml"}, {}])
def test_a_form_that_is_no_clients_to_ask_for_is_refused(make_app: MakeApp, form: dict[str, Any]) -> None:
    app = make_app(lambda _: say([5]))
    for path, body, param in (
        ("/v1/chat/completions", {**ASK, "response_format": form}, "response_format"),
        ("/v1/responses", {"model": "m", "input": "x", "text": {"format": form or {"type": 1}}}, "text.format"),
    ):
        response = app.send(path, body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {**ASK, "messages": [{"role": "user", "content": "a " * 9000}]}, "messages"),
        ("/v1/completions", {"model": "m", "prompt": "a " * 9000}, "prompt"),
        ("/v1/responses", {"model": "m", "input": "a " * 9000}, "input"),
        (
            "/v1/responses",
            {
                "model": "m",
                "input": "a",
                "text": {
                    "format": {"type": "json_schema", "name": "a", "schema": {"type": "array", "uniqueItems": True}}
                },
            },
            "text.format",
        ),
    ],
)
def test_an_error_names_the_field_that_the_route_has(make_app: MakeApp, path: str, body: Any, param: str) -> None:
    response = make_app(lambda _: say([5])).send(path, body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), response.text
    assert ("response_format" in error["message"]) is False
    if "." in param:
        assert error["message"].startswith(param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "m", "prompt": ["a", "b"]}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": [1]}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"model": "m", "prompt": "a", "echo": True}, "echo"),
        ("/v1/responses", {"model": "m", "input": "a", "previous_response_id": "r"}, "previous_response_id"),
        ("/v1/responses", {"model": "m", "input": "a", "store": True}, "store"),
        ("/v1/responses", {"model": "m", "input": "a", "tools": [{}]}, "tools"),
        ("/v1/responses", {"model": "m", "input": [{"type": "reasoning"}]}, "input"),
        (
            "/v1/chat/completions",
            {**ASK, "tools": [TOOL], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ("/v1/chat/completions", {**ASK, "tools": [TOOL], "parallel_tool_calls": True}, "parallel_tool_calls"),
        ("/v1/chat/completions", {**ASK, "tools": [{"foo": 1}], "tool_choice": "none"}, "tools"),
        ("/v1/chat/completions", {**ASK, "messages": [{"role": "tools", "content": "x"}, *ASK["messages"]]}, "role"),
        ("/tokenize", {"messages": [{"role": "tools", "content": "x"}, *ASK["messages"]]}, "role"),
        ("/v1/responses", respond({"type": "input_text", "text": "x", "bogus": 1}), "bogus"),
        ("/v1/responses", respond({"type": "output_text", "text": "x", "annotations": [1]}), "annotations"),
        ("/v1/chat/completions", {**ASK, "tool_choice": "required"}, "tool_choice"),
        ("/v1/chat/completions", {**ASK, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": ASK["messages"]}, "prompt"),
        ("/tokenize", {"prompt": "a" * 8 * 10**6}, "prompt"),
        ("/detokenize", {"tokens": [2**30]}, "tokens"),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(make_app: MakeApp, path: str, body: Any, param: str) -> None:
    response = make_app(lambda _: say([5])).send(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_what_is_being_built_when_the_server_ends_gets_an_error_and_the_time_to_return(make_app: MakeApp) -> None:
    app, go_on = make_app(lambda _: say([5])), threading.Event()
    app.engine.builder = HookedBuilder.wrap(app.engine.builder, before_build=go_on.wait)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(Service(app.engine, "m")))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bodies = {"/v1/chat/completions": ASK, "/tokenize": {"messages": ASK["messages"]}}
            tasks = [asyncio.create_task(client.post(path, json=body)) for path, body in bodies.items()]
            while app.engine.num_open < len(tasks):
                await asyncio.sleep(0.01)
            await app.engine.drain(0.0)
            answers = await asyncio.gather(*tasks)
            go_on.set()
            while app.engine.num_open:
                await asyncio.sleep(0.01)
            return answers

    for answer in asyncio.run(run()):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "capacity")
        assert int(answer.headers["retry-after"]) > 0


def test_ids_of_a_conversation_are_asked_for_in_the_queue_of_answers(make_app: MakeApp) -> None:
    held = threading.Event()

    def wait(_: Request) -> list[StepOutput]:
        held.wait(PATIENCE_S)
        return say([5])

    app = make_app(wait)
    ask = {"messages": ASK["messages"]}
    assert app.send("/tokenize", ask).json()["count"] > 0

    async def fill() -> None:
        for _ in range((EngineConfig().max_batch_size + 8) // 8):
            await app.engine.open(parse_prompt("hello"), GenerationConfig(n=8))

    asyncio.run(fill())
    assert app.send("/tokenize", ask).status_code == 429
    held.set()
    while app.engine.num_open:
        time.sleep(0.01)


def test_a_whole_answer_with_logprobs_is_put_together_off_the_loop(make_app: MakeApp) -> None:
    app, threads = make_app(lambda _: say([5, 6])), list[threading.Thread]()
    tokenizer = app.engine.builder.tokenizer

    def note(token_id: int, skip_special_tokens: bool) -> bytes:
        if not skip_special_tokens:  # for a logprob, and not for the text
            threads.append(threading.current_thread())
        return tokenizer.token_bytes(token_id, skip_special_tokens)

    double: Any = TokenizerDouble(tokenizer, token_bytes=note)
    app.engine.builder = replace(app.engine.builder, tokenizer=double)
    answer = app.send("/v1/chat/completions", {**ASK, "logprobs": True, "n": 2}).json()
    assert [len(choice["logprobs"]["content"]) for choice in answer["choices"]] == [2, 2]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    whole = threads[-4:]  # two tokens of two choices; before, each was described as it came
    assert len(threads) == 8
    assert threading.current_thread() not in whole


def test_a_stream_that_is_behind_sends_packets_and_lets_others_have_their_turn(make_app: MakeApp) -> None:
    app, num_turns, packets = make_app(lambda _: say([5])), [0], list[int]()

    async def make_events() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            packets.append(len(message["body"]))

    async def receive() -> Any:
        await asyncio.Event().wait()  # the client stays

    async def take_turns() -> None:
        while True:
            num_turns[0] += 1
            await asyncio.sleep(0)

    async def run() -> None:
        stream = Stream(app.engine, 1)
        stream.put((0, EngineError("never read")))
        others = asyncio.create_task(take_turns())
        await EventStream(stream, make_events())({}, receive, send)
        others.cancel()

    asyncio.run(run())
    assert sum(packets) == 1_000_000
    assert max(packets) < 100_000
    assert num_turns[0] >= len(packets) - 1


def test_offsets_of_tokens_are_their_places_in_the_text_streamed_or_whole(
    make_app: MakeApp, tokenizer: Tokenizer
) -> None:
    app = make_app(speak(tokenizer, "ab <ref>cd</ref> \u9f98 e"))
    for skips in (True, False):
        body = {
            "model": "m",
            "prompt": "x",
            "logprobs": 0,
            "skip_special_tokens": skips,
            "stop": ["b <ref>cd</ref> Z", "b cd Z"],
        }
        (choice,) = app.send("/v1/completions", body).json()["choices"]
        text, told = choice["text"], choice["logprobs"]
        assert text == ("ab cd \u9f98 e" if skips else "ab <ref>cd</ref> \u9f98 e")
        offsets = told["text_offset"]
        for token, offset, end in zip(told["tokens"], offsets, [*offsets[1:], len(text)], strict=True):
            is_hidden = skips and token in tokenizer.special_tokens
            is_part = "\ufffd" in token
            assert is_hidden or is_part or text[offset:end] == token
            assert offset == end if is_hidden else offset <= end
        streamed: list[int] = []
        for chunk in app.stream("/v1/completions", body)[:-1]:
            streamed += (chunk["choices"][0]["logprobs"] or {"text_offset": []})["text_offset"]
        assert streamed == offsets


def test_a_sane_request_id_is_kept_and_any_other_replaced(make_app: MakeApp) -> None:
    app = make_app(lambda _: say([5]))
    for given, is_kept in (("abc-1.2:3", True), ("a b", False), ("x" * 129, False)):
        response = app.send("/version", method="GET", headers={"X-Request-Id": given})
        assert (response.headers["x-request-id"] == given) is is_kept


def test_listed_origins_may_call_and_read_the_request_id(make_app: MakeApp) -> None:
    app = make_app(lambda _: say([5]), api_keys=("k",), allow_origins=("https://page.example",))
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = app.send("/v1/chat/completions", method="OPTIONS", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert (
        "access-control-allow-origin"
        not in app.send(
            "/v1/chat/completions", method="OPTIONS", headers={**asked, "Origin": "https://other.example"}
        ).headers
    )
    assert app.send("/v1/models", method="GET", headers={"Origin": "https://page.example"}).status_code == 401


def test_metrics_keep_vllms_names_and_count_every_end(make_app: MakeApp, tokenizer: Tokenizer) -> None:
    app = make_app(speak(tokenizer, "a b c"))
    app.send("/v1/chat/completions", {**ASK, "n": 2})
    text = app.send("/metrics", method="GET").text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
    ):
        assert f"\n{name}{{" in text, name
    assert 'vllm:request_success_total{finished_reason="stop",model_name="tilewise"} 2.0' in text
    assert 'tilewise:requests_opened_total{model_name="tilewise"} 2.0' in text
    assert 'tilewise:requests_ended_total{model_name="tilewise"} 2.0' in text


def test_the_document_lists_every_route_and_loads_nothing_from_elsewhere(make_app: MakeApp) -> None:
    app = make_app(lambda _: say([5]))
    document = app.send("/openapi.json", method="GET").json()
    assert set(document["paths"]) == {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{name}"),
        *("/tokenize", "/detokenize", "/health", "/ready", "/version", "/metrics"),
    }
    assert all("422" not in item["responses"] for path in document["paths"].values() for item in path.values())
    assert app.send("/docs", method="GET").status_code == 404
