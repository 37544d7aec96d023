"""Tells the content of an answer from its calls of tools, as the text of the answer comes."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tilewise.inputs.text.tool_syntax.internlm2 import HEAD, OPENING, START


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
        rest = self._held.partition(OPENING)[0] if self._advance == self._read_content else ""
        self._held = ""
        return [rest] if rest else []

    def _read_content(self) -> str | None:
        at = self._held.find(START)
        end = at if at >= 0 else len(self._held) - _count_held(self._held)
        content, self._held = self._held[:end], self._held[end:]
        if at < 0:
            return content or None
        self._held = self._held[len(START) :]
        self._advance = self._read_head
        return content

    def _read_head(self) -> ToolCallDelta | None:
        head = HEAD.match(self._held)
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
    return max((length for length in range(1, len(START)) if text.endswith(START[:length])), default=0)
