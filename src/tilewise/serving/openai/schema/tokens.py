"""POST /tokenize and POST /detokenize."""

from typing import Annotated, Any

from pydantic import Field

from tilewise.errors import InputError
from tilewise.inputs.conversation import parse_prompt
from tilewise.serving.openai.schema.base import Body, Messages, TokenId, read_role


class TokenizeRequest(Body):
    """POST /tokenize: the ids of a text, or of a conversation with its template and pictures."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None

    def model_post_init(self, _: Any, /) -> None:
        """Read the messages, off the event loop."""
        if (self.prompt is None) == (self.messages is None):
            raise InputError("Give prompt or messages, one of them.", param="prompt")
        self._messages = parse_prompt([read_role(message) for message in self.messages]) if self.messages else ()


class DetokenizeRequest(Body):
    """POST /detokenize: the text of ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=1 << 20)]
    skip_special_tokens: bool = False
