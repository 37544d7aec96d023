"""POST /v1/completions: text goes on from text."""

import codecs
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.serving.openai.choices import Choice
from tilewise.serving.openai.exchange import complete
from tilewise.serving.openai.schema.completions import CompletionRequest
from tilewise.types import Response, TokenLogprob


class TextChoice(Choice):
    """A plain completion."""

    def __init__(self, tokenizer: Tokenizer, *, wants_logprobs: bool, skip_special_tokens: bool) -> None:
        """Start with nothing; a token that is skipped takes no place in the text."""
        super().__init__(tokenizer, wants_logprobs=wants_logprobs)
        self._skip_special_tokens = skip_special_tokens
        self._offsets, self._num_characters = list[int](), 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def _take_text(self, piece: Response) -> list[dict[str, Any]]:
        entries = piece.logprobs or []
        self.text += piece.text
        told = self._tell(entries, self._place(entries))
        says: list[dict[str, Any]] = [{"text": piece.text, "logprobs": told}] if piece.text or told else []
        return [*says, {"text": "", "finish_reason": self.finish_reason}] if self.finish_reason else says

    def whole(self) -> dict[str, Any]:
        """See `Choice.whole`."""
        told = self._tell(self._logprobs, self._offsets)
        return {"text": self.text, "logprobs": told, "finish_reason": self.finish_reason}

    def _place(self, entries: Sequence[TokenLogprob]) -> list[int]:
        """Where in the text the newest tokens begin; one that goes on with a character, where that begins."""
        assert self._tokenizer is not None
        num_placed = len(self._offsets)
        for entry in entries:
            self._offsets.append(self._num_characters)
            shown = self._tokenizer.token_bytes(entry.token_id, self._skip_special_tokens)
            self._num_characters += len(self._utf8.decode(shown))
        return self._offsets[num_placed:]

    def _tell(self, entries: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, Any] | None:
        if not self.wants_logprobs or not entries:
            return None
        tokens = [self._describe(entry.token_id, entry.logprob) for entry in entries]
        tops = [[self._describe(*pair) for pair in entry.top] for entry in entries]
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{token["token"]: token["logprob"] for token in top} for top in tops],
            "text_offset": list(offsets),
        }


async def create_completion(request: Request, body: CompletionRequest) -> HttpResponse:
    """Go on from a text."""

    def create_choice(tokenizer: Tokenizer) -> TextChoice:
        wants_logprobs = body.logprobs is not None
        return TextChoice(tokenizer, wants_logprobs=wants_logprobs, skip_special_tokens=body.skip_special_tokens)

    return await complete(request, body, create_choice, "cmpl", "text_completion")
