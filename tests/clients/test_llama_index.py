"""LlamaIndex' OpenAILike, from an environment of its own, hears what our own client hears."""

from pathlib import Path

import pytest

from tests.clients.environment import Environment
from tests.clients.question import MORE, ask, facts
from tests.clients.running import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import json, sys

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike

facts = json.load(sys.stdin)
model = OpenAILike(
    api_base=facts["base_url"], api_key=facts["key"], model=facts["model"], temperature=0, is_chat_model=True,
    context_window=8192, max_tokens=facts["max_tokens"], max_retries=0,
)


def show(picture):
    question = ChatMessage(role="user", blocks=[picture, TextBlock(text=facts["question"])])
    return [ChatMessage(role="system", content=facts["system"]), question]


def tell(response):
    return {
        "text": response.message.content,
        "finish_reason": response.raw.choices[0].finish_reason,
        "prompt_tokens": response.raw.usage.prompt_tokens,
    }


first = show(ImageBlock(url=facts["picture"]))
whole = model.chat(first)
pieces = list(model.stream_chat(first))
print(json.dumps({
    "whole": tell(whole),
    "by_file": tell(model.chat(show(ImageBlock(path=facts["path"])))),
    "second": tell(model.chat([*first, whole.message, ChatMessage(role="user", content=facts["more"])])),
    "streamed": ["".join(piece.delta for piece in pieces), pieces[-1].message.content],
    "num_pieces": sum(bool(piece.delta) for piece in pieces),
    "completed": model.complete(facts["more"]).text,
}))
"""


def test_a_picture_is_answered_whole_streamed_from_a_file_and_in_turns(server: RunningServer, tmp_path: Path) -> None:
    heard = Environment(tmp_path, "llama-index-llms-openai-like").run(SCRIPT, **facts(server))
    expected = ask(server)
    assert heard["whole"] == heard["by_file"] == expected
    assert heard["streamed"] == [expected["text"]] * 2
    assert heard["num_pieces"] > 1
    assert heard["second"] == ask(server, ("assistant", expected["text"]), ("user", MORE))
    assert heard["completed"] == ask(server, ("user", MORE), messages=[])["text"]
