"""OpenAI's `tools` and `tool_choice`: checked, and turned into what the model is told and the form of its answer."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tilewise.errors import InputError
from tilewise.inputs.text.tool_syntax import internlm2

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
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
    turn = {"role": "tools", "content": internlm2.describe_tools(list(functions.values()))}
    copied.insert(int(bool(copied) and copied[0].get("role") == "system"), turn)
    called = [{key: functions[name][key] for key in ("name", "parameters", "strict")} for name in callable_names]
    form = {"type": "tool_calls", "is_required": tool_choice != "auto", "tools": called}
    return copied, json.dumps(form, ensure_ascii=False)


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
