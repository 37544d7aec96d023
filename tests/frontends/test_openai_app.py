"""The application over an engine that says what the test tells it to, in one process and without sockets."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from tests.frontends.scripted import Script, ScriptedClient, say
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Checkpoint, Engine
from tilewise.frontends.async_engine import AsyncEngine
from tilewise.frontends.openai_app import create_app
from tilewise.frontends.pipeline import create_builder
from tilewise.frontends.service import ServerSettings
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.types import FinishReason, Request, StepOutput, TokenLogprob

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}


@dataclass
class App:
    """Sends one request after another; `submitted` is what the engine got."""

    engine: AsyncEngine
    client: ScriptedClient
    settings: ServerSettings

    def send(self, path: str, body: Any = None, *, method: str = "POST", **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(create_app(self.engine, self.settings))
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

    def make(script: Script, *, max_queued: int = 8, settings: ServerSettings | None = None) -> App:
        model = replace(load_model_config(model_folder()), is_random=False)
        resolved = resolve(EngineConfig(), model, DeviceConfig("cpu"))
        client = ScriptedClient(script)
        checkpoint = Checkpoint(model_folder(), model)
        engine = AsyncEngine(
            Engine(client, resolved, checkpoint.folder), create_builder(checkpoint), max_queued=max_queued
        )
        apps.append(App(engine, client, settings or ServerSettings("m")))
        return apps[-1]

    yield make
    for app in apps:
        app.engine.close()
        assert app.engine.num_open == 0, "an answer was opened and never ended"


def speak(tokenizer: Tokenizer, text: str) -> Script:
    """Say `text` token by token, special tokens by their names, and end with the template's stop."""

    def script(_: Request) -> list[StepOutput]:
        ids: list[int] = []
        for piece in (
            text.replace("<|plugin|>", "\0<|plugin|>\0").replace("<|action_start|>", "\0<|action_start|>\0").split("\0")
        ):
            ids += [tokenizer.special_id(piece)] if tokenizer.has_special(piece) else tokenizer.encode(piece)
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
    assert app.client.submitted[0].generation.skip_special_tokens is False
    *chunks, done = app.stream("/v1/chat/completions", body)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    told = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in told) == '{"a": 12}'
    assert [call.get("id") is not None for call in told] == [True] + [False] * (len(told) - 1)
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


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


def test_a_fault_of_ours_tells_nothing(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(lambda _: say([5]))

    def fail(*_: object, **__: object) -> None:
        raise KeyError("the secret of 0x7f001234")

    monkeypatch.setattr("tilewise.inputs.request.RequestBuilder.build", fail)
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


@pytest.mark.parametrize("form", [{"type": "tool_calls", "tools": []}, {"type": "xml"}, {}])
def test_a_form_that_is_no_clients_to_ask_for_is_refused(make_app: MakeApp, form: dict[str, Any]) -> None:
    app = make_app(lambda _: say([5]))
    for path, body in (
        ("/v1/chat/completions", {**ASK, "response_format": form}),
        ("/v1/responses", {"model": "m", "input": "x", "text": {"format": form or {"type": 1}}}),
    ):
        response = app.send(path, body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")


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
        ("/v1/chat/completions", {**ASK, "tools": [TOOL], "response_format": {"type": "text"}}, "response_format"),
        ("/v1/chat/completions", {**ASK, "tool_choice": "required"}, "tool_choice"),
        ("/v1/chat/completions", {**ASK, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": ASK["messages"]}, "prompt"),
        ("/tokenize", {"prompt": "a" * 10**7}, "prompt"),
        ("/detokenize", {"tokens": [2**30]}, "tokens"),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(make_app: MakeApp, path: str, body: Any, param: str) -> None:
    response = make_app(lambda _: say([5])).send(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_a_sane_request_id_is_kept_and_any_other_replaced(make_app: MakeApp) -> None:
    app = make_app(lambda _: say([5]))
    for given, is_kept in (("abc-1.2:3", True), ("a b", False), ("x" * 129, False)):
        response = app.send("/version", method="GET", headers={"X-Request-Id": given})
        assert (response.headers["x-request-id"] == given) is is_kept


def test_listed_origins_may_call_and_read_the_request_id(make_app: MakeApp) -> None:
    settings = ServerSettings("m", api_keys=("k",), allow_origins=("https://page.example",))
    app = make_app(lambda _: say([5]), settings=settings)
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
