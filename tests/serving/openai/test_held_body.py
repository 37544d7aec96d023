"""How long a request's body is held, and counts: until the engine has the request, not until its answer's end."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.processes import PATIENCE_S
from tests.scripted import HookedBuilder, ScriptedClient, say
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Engine
from tilewise.inputs.request_builder import create_builder
from tilewise.serving.async_engine import AsyncEngine
from tilewise.serving.http.body_memory import BodyMemory
from tilewise.serving.openai.app import create_app
from tilewise.serving.openai.schema.chat import ChatRequest
from tilewise.serving.service import Service
from tilewise.types import Request, StepOutput

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ASK),
        ("/v1/completions", {"model": "m", "prompt": "x"}),
        ("/v1/responses", {"model": "m", "input": "x"}),
    ],
)
def test_a_body_is_held_until_its_request_is_with_the_engine(path: str, body: dict[str, Any], stream: bool) -> None:
    memory = BodyMemory()
    sizes = list[int]()

    def answer(_: Request) -> Sequence[StepOutput]:
        deadline = time.monotonic() + PATIENCE_S
        while memory.num_bytes and time.monotonic() < deadline:
            time.sleep(0.01)
        sizes.append(memory.num_bytes)
        return say([5])

    model = load_model_config(model_folder())
    builder = HookedBuilder.wrap(
        create_builder(model_folder(), model), before_build=lambda: sizes.append(memory.num_bytes)
    )
    engine = AsyncEngine(builder)
    engine.attach(Engine(ScriptedClient(answer), resolve(EngineConfig(), model, DeviceConfig("cpu"))))
    app = create_app(Service(engine, "m"))

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"body": memory.hold()}}, receive, send)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(count), base_url="http://localhost") as client:
            return await client.post(path, json={**body, "stream": stream})

    response = asyncio.run(run())
    engine.close()
    assert response.status_code == 200
    assert sizes == [len(response.request.content), 0]


def test_a_body_lets_go_of_what_is_said_and_keeps_the_rest() -> None:
    body = ChatRequest.read({**ASK, "stop": ["a"]})
    assert body.conversation
    body.drop_conversation()
    assert not body.conversation
    assert body.messages is None
    assert body.stop == ["a"]
