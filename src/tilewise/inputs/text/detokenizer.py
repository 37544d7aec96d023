"""Ids to text as they come: whole characters, up to the first stop word.

Every push costs its new tokens, never the whole answer again. What is pushed adds up to exactly what
`Tokenizer.decode` says of all ids at once, however they were cut into pushes.
"""

import codecs
from collections.abc import Iterable, Sequence

from tilewise.inputs.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer, in pieces that are safe to show.

    A character is held back until its last byte is there, and text that may become a stop word until it has or
    cannot. The stop word that is complete first ends the text before itself; of several that are complete at the
    same character, the longest.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, stop_words: Sequence[str] = ()
    ) -> None:
        """Start an answer; `stop_words` are matched in the text as it is shown."""
        self.stop_word: str | None = None
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop_words = tuple(sorted(stop_words, key=len, reverse=True))
        self._longest = len(self._stop_words[0]) if self._stop_words else 0
        self._first_characters = {word[0] for word in self._stop_words}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token_ids: Iterable[int], *, may_stop: bool = True) -> str:
        """Take new tokens, give the text that they complete; nothing after a stop word.

        What is told while it may not stop is part of no stop word.
        """
        new_bytes = b"".join(self._tokenizer.token_bytes(i, self._skip_special_tokens) for i in token_ids)
        new_text = self._utf8.decode(new_bytes)
        return self._advance(new_text) if may_stop else new_text

    def finish(self) -> str:
        """End the answer: give what was held back, half a character as U+FFFD."""
        text = self._advance(self._utf8.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _advance(self, new_text: str) -> str:
        if self.stop_word is not None:
            return ""
        text = self._held + new_text
        found = [(at + len(word), at, word) for word in self._stop_words if (at := text.find(word)) >= 0]
        if found:
            _, end, self.stop_word = min(found)
            self._held = ""
        else:
            end = len(text) - self._count_held(text)
            self._held = text[end:]
        return text[:end]

    def _count_held(self, text: str) -> int:
        """Length of the longest end of `text` that a stop word begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            # The first characters rule nearly every length out without a slice.
            if text[-length] in self._first_characters:
                end = text[-length:]
                if any(word.startswith(end) for word in self._stop_words):
                    return length
        return 0
