"""A question about the bundled picture, as our own client asks it: the measure of what other libraries hear."""

from typing import Any

from tests.clients.running import KEYS, MODEL, RunningServer
from tests.clients.test_openai_sdk import DATA_URL
from tilewise.client import APIClient
from tilewise.demo import picture_path

MAX_TOKENS = 24
SYSTEM, QUESTION, MORE = "Be brief.", "What is in the picture?", "And what else?"
FIRST: list[dict[str, Any]] = [
    {"role": "system", "content": SYSTEM},
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": QUESTION}],
    },
]


def facts(server: RunningServer) -> dict[str, Any]:
    """What a script needs to ask the same."""
    return {
        "base_url": f"{server.url}/v1",
        "key": KEYS[0],
        "model": MODEL,
        "max_tokens": MAX_TOKENS,
        "system": SYSTEM,
        "question": QUESTION,
        "more": MORE,
        "picture": DATA_URL,
        "path": str(picture_path()),
    }


def ask(server: RunningServer, *more: tuple[str, str], messages: list[dict[str, Any]] = FIRST) -> dict[str, Any]:
    """The likeliest answer to `messages` and `more` turns of (role, text)."""
    turns = [*messages, *({"role": role, "content": text} for role, text in more)]
    client = APIClient(server.url, KEYS[0])
    answer = client.chat_completions_v1(MODEL, turns, temperature=0, max_tokens=MAX_TOKENS)
    (choice,) = answer["choices"]
    assert choice["message"]["content"]
    return {
        "text": choice["message"]["content"],
        "finish_reason": choice["finish_reason"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
    }
