"""OpenAI's tools in InternLM2's syntax: what the model is told of them, and its calls read back from its text.

Which special tokens open a call, and that what follows is a call of a given tool, is left to the answer's form
(`inputs.grammar`): the model cannot write the opening out in letters, so the text has it only where a call starts.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tilewise.errors import InputError
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import GenerationConfig

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_OPENING = "<|action_start|>"
_START = f"{_OPENING}<|plugin|>\n"
_HEAD = re.compile(r'\{"name": "([\w-]+)", "parameters": ')
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def add_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tool_choice: str | Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the messages for `parse_prompt`, the tools among them, and the `response_format` of the answer.

    `auto` leaves the model free to talk and to call; `required` and a named tool make it call at once. A call's
    arguments always follow the tool's parameters: to every keyword where the tool is `strict`, else to those that are
    supported. With `none` the messages are as they were.

    Raises:
        InputError: a tool or the choice is malformed.
    """
    copied = [dict(message) for message in messages]
    functions = {function["name"]: function for function in map(_check_tool, tools)}
    if not 0 < len(tools) <= MAX_TOOLS or len(functions) != len(tools):
        raise InputError(f"tools must hold 1 to {MAX_TOOLS} tools of different names.", param="tools")
    if tool_choice == "none":
        return copied, None
    callable_names = list(functions)
    if isinstance(tool_choice, Mapping):
        match tool_choice:
            case {"type": "function", "function": {"name": str(name)}} if name in functions:
                callable_names = [name]
            case _:
                raise InputError(f"tool_choice {tool_choice!r:.200} names none of the tools.", param="tool_choice")
    elif tool_choice not in ("auto", "required"):
        text = f"tool_choice {tool_choice!r:.80} is unknown; use 'none', 'auto', 'required' or a tool."
        raise InputError(text, param="tool_choice")
    # Source: the layout of the examples in InternLM/InternLM chat/chat_format.md.
    told = [{key: f[key] for key in ("name", "description", "parameters") if key in f} for f in functions.values()]
    turn = {"role": "tools", "content": json.dumps(told, ensure_ascii=False, indent=4)}
    copied.insert(int(bool(copied) and copied[0].get("role") == "system"), turn)
    called = [{key: functions[name][key] for key in ("name", "parameters", "strict")} for name in callable_names]
    form = {"type": "tool_calls", "is_required": tool_choice != "auto", "tools": called}
    return copied, json.dumps(form, ensure_ascii=False)


def find_call_id(generation: GenerationConfig, tokenizer: Tokenizer) -> int | None:
    """The special token that opens a call, where the answer may hold one."""
    form = json.loads(generation.response_format or "{}")
    return tokenizer.special_id(_OPENING) if form.get("type") == "tool_calls" else None


def _check_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """One tool's function, with its parameters and whether it is strict."""
    function: Any = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        raise InputError("A tool is an object with type 'function' and a function.", param="tools")
    given = {key: value for key, value in cast(Mapping[str, Any], function).items() if value is not None}
    unknown = [key for key in given if key not in ("name", "description", "parameters", "strict")]
    unknown += [key for key in tool if key not in ("type", "function")]
    if unknown:
        raise InputError(f"A tool has no field {unknown[0]!r:.80}.", param="tools")
    name, parameters, strict = given.get("name"), given.get("parameters", _NO_PARAMETERS), given.get("strict", False)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"A tool's name is 1 to 64 of a-z, A-Z, 0-9, _ and -; got {name!r:.80}.", param="tools")
    if not isinstance(parameters, Mapping) or cast(Mapping[str, Any], parameters).get("type") != "object":
        raise InputError(f"The parameters of {name} must be a JSON schema of type 'object'.", param="tools")
    if not isinstance(strict, bool) or not isinstance(given.get("description", ""), str):
        raise InputError(f"In {name}, strict is true or false, and the description a text.", param="tools")
    return {**given, "parameters": parameters, "strict": strict}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of call number `index`; its name comes with the first delta only, its arguments piece by piece."""

    index: int
    id: str
    name: str | None
    arguments: str


class ToolSplitter:
    """Tells the content of an answer from its calls, as the text of an `Answer` comes."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._held = ""
        self._calls: list[str] = []
        self._advance: Callable[[], str | ToolCallDelta | None] = self._read_content
        self._depth = 0
        self._quoted = ""  # within a string of the arguments a quote, after a backslash there that

    def push(self, text: str) -> list[str | ToolCallDelta]:
        """Take more of the answer; give what it completes."""
        self._held += text
        pieces: list[str | ToolCallDelta] = []
        while (piece := self._advance()) is not None:
            pieces += [piece] if piece else []
        return pieces

    def finish(self) -> list[str | ToolCallDelta]:
        """End the answer: give the content that was held back. A call that was cut within its name is lost."""
        rest = self._held.partition(_OPENING)[0] if self._advance == self._read_content else ""
        self._held = ""
        return [rest] if rest else []

    def _read_content(self) -> str | None:
        at = self._held.find(_START)
        end = at if at >= 0 else len(self._held) - _count_held(self._held)
        content, self._held = self._held[:end], self._held[end:]
        if at < 0:
            return content or None
        self._held = self._held[len(_START) :]
        self._advance = self._read_head
        return content

    def _read_head(self) -> ToolCallDelta | None:
        head = _HEAD.match(self._held)
        if head is None:
            return None
        self._held = self._held[head.end() :]
        self._calls.append(f"call_{uuid.uuid4().hex[:24]}")
        self._advance = self._read_arguments
        return self._delta(head[1], "")

    def _read_arguments(self) -> ToolCallDelta | None:
        text, self._held = self._held, ""
        for at, character in enumerate(text, start=1):
            if self._quoted:
                ends = self._quoted == "\\" or character not in '"\\'
                self._quoted = '"' if ends else "" if character == '"' else character
            elif character == '"':
                self._quoted = character
            else:
                self._depth += (character == "{") - (character == "}")
                if self._depth == 0 and character == "}":
                    self._advance, self._held = self._read_end, text[at:]
                    return self._delta(None, text[:at])
        return self._delta(None, text) if text else None

    def _read_end(self) -> str | None:
        if not self._held:
            return None
        self._held = self._held.removeprefix("}")
        self._advance = self._read_content
        return ""

    def _delta(self, name: str | None, arguments: str) -> ToolCallDelta:
        return ToolCallDelta(len(self._calls) - 1, self._calls[-1], name, arguments)


def _count_held(text: str) -> int:
    """Length of the longest end of `text` that a call may begin with."""
    return max((length for length in range(1, len(_START)) if text.endswith(_START[:length])), default=0)
