"""One answer of a request as far as it has come; the kinds of completion differ in how they show it."""

from typing import Any

from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.types import Response, TokenLogprob, Usage

# OpenAI's own value for what has no probability worth telling; JSON has no infinity.
_LEAST_LOGPROB = -9999.0


class Choice:
    """One answer as far as it has come; the kinds of completion differ in how they tell it."""

    def __init__(self, tokenizer: Tokenizer | None = None, *, wants_logprobs: bool = False) -> None:
        """Start with nothing; the tokenizer names the tokens of logprobs."""
        self.text: str = ""
        self.finish_reason: str | None = None
        self.usage = Usage(0, 0)
        self.wants_logprobs = wants_logprobs
        self._tokenizer = tokenizer
        self._logprobs: list[TokenLogprob] = []

    def take(self, piece: Response) -> list[dict[str, Any]]:
        """Take a piece; give what a stream's entries say of it."""
        assert piece.usage is not None
        self.usage, self.finish_reason = piece.usage, piece.finish_reason
        self._logprobs += piece.logprobs or []
        return self._take_text(piece)

    def _take_text(self, piece: Response) -> list[dict[str, Any]]:
        self.text += piece.text
        return [{"text": piece.text}] if piece.text else []

    def opening(self) -> list[dict[str, Any]]:
        """What a stream's entries say before there is anything."""
        return []

    def whole(self) -> dict[str, Any]:
        """The entry of an answer that has ended."""
        raise NotImplementedError

    def _describe(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A token with its bytes, which may be a part of a character."""
        assert self._tokenizer is not None
        raw = self._tokenizer.token_bytes(token_id, False)
        return {"token": raw.decode(errors="replace"), "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(raw)}
