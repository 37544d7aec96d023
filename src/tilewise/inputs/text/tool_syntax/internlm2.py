"""InternLM2's syntax of tools: what the model is told of them, how it calls one, and how a call is read back.

Which special tokens open a call, and that what follows is a call of a given tool, is left to the answer's form
(`inputs.text.grammar`): the model cannot write the opening out in letters, so the text has it only where a call starts.

Source: InternLM/InternLM chat/chat_format.md, "Function Call".
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilewise.inputs.conversation import ToolCall
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import GenerationConfig

OPENING, _PLUGIN = "<|action_start|>", "<|plugin|>"
START = f"{OPENING}{_PLUGIN}\n"
_GROUNDING = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
SPECIAL_NAMES = (OPENING, _PLUGIN, *_GROUNDING)
HEAD = re.compile(r'\{"name": "([\w-]+)", "parameters": ')


def describe_tools(functions: Sequence[Mapping[str, Any]]) -> str:
    """What the model is told of its tools, in the layout of the source's examples."""
    told = [{key: f[key] for key in ("name", "description", "parameters") if key in f} for f in functions]
    return json.dumps(told, ensure_ascii=False, indent=4)


def write_call(call: ToolCall) -> str:
    """A call as the model writes it, without the tokens around it."""
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "parameters": {call.arguments}}}'


def build_call_grammar(calls: Sequence[tuple[str, str]], *, is_required: bool, find_id: Callable[[str], int]) -> str:
    """Rules of an answer that calls one of these tools, each a name and the JSON schema of its arguments.

    A call is two special tokens, then one line of JSON; before it stands prose, where it may come.
    """
    start, plugin = (f"<[{find_id(name)}]>" for name in (OPENING, _PLUGIN))
    marks = ",".join(str(find_id(name)) for name in _GROUNDING)
    names = [f"call{number}" for number in range(len(calls))]
    rules = [
        "start: call" if is_required else "start: prose call?",
        f"prose: TEXT (<[{marks}]> TEXT)*",
        # Written out in letters the mark would look like the token to a program that reads the text.
        rf"TEXT: /(?s:.*)/ & ~/(?s:.*){re.escape(OPENING)}(?s:.*)/",
        f'call: {start} {plugin} "\\n" ({" | ".join(names)})',
    ]
    for rule, (name, schema) in zip(names, calls, strict=True):
        opening = json.dumps(f'{{"name": {json.dumps(name)}, "parameters": ')
        rules.append(f'{rule}: {opening} %json {schema} "}}"')
    return "\n".join(rules)


def find_call_id(generation: GenerationConfig, tokenizer: Tokenizer) -> int | None:
    """The special token that opens a call, where the answer may hold one."""
    form = json.loads(generation.response_format or "{}")
    return tokenizer.special_id(OPENING) if form.get("type") == "tool_calls" else None
