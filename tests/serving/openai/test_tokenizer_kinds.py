"""The routes that show ids and bytes, over each kind of tokenizer."""

import asyncio
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scripted import Script, ScriptedClient, say
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig, DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Engine
from tilewise.inputs.request_builder import create_builder
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.serving.async_engine import AsyncEngine
from tilewise.serving.openai.app import create_app
from tilewise.serving.service import Service

TEXT = "图中 a 😀 cafe\u0301\n  <|im_start|> <tool_call> <img>"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
Send = Callable[[str, dict[str, Any]], httpx.Response]


@pytest.fixture(params=["demo", "qwen"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(kind: str, tokenizer_folders: Mapping[str, Path]) -> Tokenizer:
    return load_tokenizer(tokenizer_folders[kind])


@pytest.fixture
def serve(kind: str, tokenizer_folders: Mapping[str, Path]) -> Iterator[Callable[[Script], Send]]:
    """A server over one kind's tokenizer, and an engine that says what the test tells it to."""
    engines: list[AsyncEngine] = []

    def start(script: Script) -> Send:
        model = replace(load_model_config(model_folder()), is_random=False)
        engine = AsyncEngine(create_builder(tokenizer_folders[kind], model, ChatTemplateConfig("internvl2_5")))
        engine.attach(Engine(ScriptedClient(script), resolve(EngineConfig(), model, DeviceConfig("cpu"))))
        engines.append(engine)

        async def run(path: str, body: dict[str, Any]) -> httpx.Response:
            transport = httpx.ASGITransport(create_app(Service(engine, "m")))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.post(path, json=body)

        return lambda path, body: asyncio.run(run(path, body))

    yield start
    for engine in engines:
        engine.close()


def test_tokenize_and_detokenize_are_inverse_and_never_tell_of_special_tokens(
    serve: Callable[[Script], Send], tokenizer: Tokenizer
) -> None:
    send = serve(lambda _: [])
    tokens = send("/tokenize", {"prompt": TEXT}).json()["tokens"]
    assert tokens == tokenizer.encode(TEXT)
    assert tokenizer.reserved_ids.isdisjoint(tokens)
    text = send("/detokenize", {"tokens": tokens}).json()["prompt"]
    assert unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", TEXT)
    refused = send("/detokenize", {"tokens": [tokenizer.vocab_size]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")


def test_a_text_of_far_more_tokens_than_a_session_is_refused(serve: Callable[[Script], Send]) -> None:
    refused = serve(lambda _: [])("/tokenize", {"prompt": "1 " * 40_000})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert "8192 tokens" in refused.json()["error"]["message"]


def test_the_bytes_of_logprobs_add_up_to_the_answers_text(
    serve: Callable[[Script], Send], tokenizer: Tokenizer
) -> None:
    send = serve(lambda _: say(tokenizer.encode(TEXT)))
    (choice,) = send("/v1/chat/completions", {**ASK, "logprobs": True}).json()["choices"]
    told = [byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"]]
    assert bytes(told).decode() == choice["message"]["content"] == tokenizer.decode(tokenizer.encode(TEXT))


def test_a_stream_has_whole_characters_and_a_stop_word_ends_it(
    serve: Callable[[Script], Send], tokenizer: Tokenizer
) -> None:
    send = serve(lambda _: say(tokenizer.encode("猫😀 END 狗")))
    lines = send("/v1/chat/completions", {**ASK, "stream": True, "stop": " END"}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "猫😀"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_answer_with_a_form_is_accepted_over_each_tokenizer_and_tools_where_it_has_their_tokens(
    serve: Callable[[Script], Send], tokenizer: Tokenizer, kind: str
) -> None:
    send = serve(lambda _: say(tokenizer.encode("{}"), stop_id=tokenizer.special_id("<|im_end|>")))
    assert send("/v1/chat/completions", {**ASK, "response_format": {"type": "json_object"}}).status_code == 200
    tool = {"type": "function", "function": {"name": "look"}}
    answer = send("/v1/chat/completions", {**ASK, "tools": [tool]})
    if kind == "demo":
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
