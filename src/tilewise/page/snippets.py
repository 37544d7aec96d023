"""The conversation on the page as code that asks it again: curl, the openai package, our own pipeline."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import Any


class _Code(str):
    """Text that stands in a list of messages as itself, not as a string."""

    def __repr__(self) -> str:
        return str(self)


def write_curl(server_url: str, body: Mapping[str, Any]) -> str:
    """The request as a shell command that reads each picture from a file beside it."""
    names: list[str] = []

    def mark(name: str) -> str:
        names.append(name)
        return f"data:;base64,@{len(names) - 1}@"

    text = json.dumps({**body, "messages": _place(body["messages"], mark)}, ensure_ascii=False, indent=2)
    text = re.sub(r"[\\$`]", r"\\\g<0>", text)
    for number, name in enumerate(names):
        text = text.replace(f"base64,@{number}@", f"base64,$(base64 < {shlex.quote(name)} | tr -d '\\n')", 1)
    return f"""\
curl {server_url}/v1/chat/completions \\
  -H "Authorization: Bearer $API_KEY" -H "Content-Type: application/json" -d @- <<END
{text}
END
"""


def write_sdk(server_url: str, body: Mapping[str, Any]) -> str:
    """The request as Python for the official `openai` package."""
    given = {name: value for name, value in body.items() if name not in ("messages", "top_k", "skip_special_tokens")}
    fields = "".join(f"    {name}={value!r},\n" for name, value in given.items())
    messages = pformat(_place(body["messages"], lambda name: _Code(f"picture({name!r})")), sort_dicts=False)
    return f"""\
import base64, os
from pathlib import Path
from openai import OpenAI

def picture(path):
    return "data:;base64," + base64.b64encode(Path(path).read_bytes()).decode()

messages = {messages}
client = OpenAI(base_url="{server_url}/v1", api_key=os.environ.get("API_KEY", "none"))
answer = client.chat.completions.create(
{fields}    messages=messages,
    extra_body={{"top_k": {body["top_k"]}, "skip_special_tokens": False}},
)
print(answer.choices[0].message.content)
"""


def write_pipeline(model: str | None, body: Mapping[str, Any]) -> str:
    """The request as Python for this package, without a server."""
    names = ("temperature", "top_p", "top_k") if body["temperature"] else ()
    sampling = "".join(f"{name}={body[name]}, " for name in names)
    return f"""\
from tilewise import GenerationConfig, pipeline

messages = {pformat(_place(body["messages"], str), sort_dicts=False)}
config = GenerationConfig(do_sample={bool(names)}, {sampling}max_new_tokens={body["max_tokens"]})
with pipeline({"" if model is None else repr(model)}) as pipe:
    print(pipe(messages, config).text)
"""


def _place(messages: Sequence[Mapping[str, Any]], write: Callable[[str], str]) -> list[Any]:
    """The messages with `write(file name)` at every picture's place."""
    placed = json.loads(json.dumps(messages))
    for message in placed:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                part["image_url"]["url"] = write(Path(part["image_url"]["url"]).name)
    return placed
