"""LangChain's ChatOpenAI, from an environment of its own, hears what our own client hears."""

from pathlib import Path

import pytest

from tests.clients.environment import Environment
from tests.clients.question import MORE, ask, facts
from tests.clients.running import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import json, sys
from typing import Literal

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

facts = json.load(sys.stdin)
model = ChatOpenAI(
    base_url=facts["base_url"], api_key=facts["key"], model=facts["model"], temperature=0,
    max_tokens=facts["max_tokens"], max_retries=0, stream_usage=True,
)


def tell(message):
    return {
        "text": message.content,
        "finish_reason": message.response_metadata["finish_reason"],
        "prompt_tokens": message.usage_metadata["input_tokens"],
    }


class Answer(BaseModel):
    shape: Literal["circle", "square", "none"]


picture = {"type": "image_url", "image_url": {"url": facts["picture"]}}
question = HumanMessage(content=[picture, {"type": "text", "text": facts["question"]}])
first = [SystemMessage(facts["system"]), question]
whole = model.invoke(first)
streamed, *pieces = model.stream(first)
for piece in pieces:
    streamed += piece
patient = model.model_copy(update={"max_tokens": 200})
print(json.dumps({
    "whole": tell(whole),
    "streamed": tell(streamed),
    "num_pieces": sum(bool(piece.content) for piece in pieces),
    "second": tell(model.invoke([*first, whole, HumanMessage(facts["more"])])),
    "shape": patient.with_structured_output(Answer, method="json_schema").invoke(first).shape,
}))
"""


def test_a_picture_is_answered_whole_streamed_in_turns_and_in_a_form(server: RunningServer, tmp_path: Path) -> None:
    heard = Environment(tmp_path, "langchain-openai").run(SCRIPT, **facts(server))
    expected = ask(server)
    assert heard["whole"] == heard["streamed"] == expected
    assert heard["num_pieces"] > 1
    assert heard["second"] == ask(server, ("assistant", expected["text"]), ("user", MORE))
    assert heard["shape"] in ("circle", "square", "none")
