"""A conversation that `Pipeline.chat` goes on with."""

from contextlib import AbstractContextManager
from typing import Any

from tilewise.inputs.conversation import Message
from tilewise.types import Response


class Session(AbstractContextManager["Session"]):
    """A conversation held by `Pipeline.chat`: `response` is the last answer, `history` all (prompt, text) pairs."""

    def __init__(self) -> None:
        """Start an empty conversation."""
        self.response: Response | None = None
        self.history: list[tuple[Any, str]] = []
        self.messages: tuple[Message, ...] = ()

    def add_turn(self, prompt: Any, messages: tuple[Message, ...], response: Response, own_text: str) -> None:
        """Go on from what the model said to `messages`, of which `prompt` is the last turn."""
        self.response = response
        self.history.append((prompt, response.text))
        self.messages = (*messages, Message("assistant", (own_text,)))

    def close(self) -> None:
        """Forget the conversation and its pictures."""
        self.response, self.history, self.messages = None, [], ()

    def __exit__(self, *_: object) -> None:
        self.close()
