"""What form an answer must have: checked before a request is taken, then the tokens that may come next.

The one place that knows llguidance. Special tokens are never part of an answer's form, but for those that open a
tool call; a stop token may come where the answer is complete, and nowhere else.

llguidance bounds most of its work, but its compiler is native code that nothing can interrupt, and some small inputs
(multiples of four numbers at once, a chain of references) keep it busy for minutes. So whatever is not plain is
compiled first in a process of its own, `grammar_worker`, which is killed when it is slow.
"""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilewise.child_process import child_command, child_environment
from tilewise.errors import CapacityError, EngineError, InputError
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.inputs.text.tool_syntax import internlm2
from tilewise.types import GenerationConfig

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Seconds of a core, from when all is imported, and by the clock, where a busy machine starts a process slowly.
MAX_COMPILE_S, _TIMEOUT_S = 0.3, 5.0
# What these need grows with products of numbers, of parts or with nesting, not with the length of the text.
_COSTLY = re.compile(r'"(?:\$ref|allOf|anyOf|oneOf|multipleOf|pattern\w*)\\?"|start: /')
TOO_COSTLY = "it takes too long, or too much memory, to compile; make it simpler."
# By its time, by its memory, by its nesting; SIGKILL is not among them, which a machine short of memory sends.
_ENDS_OF_COSTLY = tuple(-number for number in (signal.SIGPROF, signal.SIGABRT, signal.SIGSEGV))
_MAX_PLAIN_CHARS = 8 << 10
# PERF: a step of the worst regex found takes 60 ms with this much initial fuel, 930 ms with the default (one core of
# an x86 server, 2026-11). A lexer state is 1 to 2 kB, and every running answer may have as many.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_items_in_row": 500,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
    "precompute_large_lexemes": False,
}
# Bounded, or a model that is fond of white space never comes to an end.
_LAYOUT = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}
_ANY_SPECIAL_ID = 256


def check_format(generation: GenerationConfig) -> None:
    """Refuse a form that cannot be held to, or not within bounds. Takes a second at most, mostly milliseconds.

    Raises:
        InputError: the message names what is not supported.
        CapacityError: the machine is too busy to tell.
    """
    if generation.response_format is None:
        return
    form = json.loads(generation.response_format)
    may_be_cut = form["type"] == "tool_calls" and not form["is_required"]
    if generation.ignore_eos or (not may_be_cut and (generation.stop_words or generation.stop_token_ids)):
        raise InputError(
            "response_format excludes ignore_eos, stop_words and stop_token_ids: the answer ends where it is complete.",
            param="response_format",
        )
    if fault := find_fault(_build_grammar(form, lambda _: _ANY_SPECIAL_ID)):
        raise InputError(f"response_format cannot be honoured: {fault}", param="response_format")


class Guide:
    """How far one answer has come in its form; it has seen exactly the answer's tokens. One thread at a time."""

    def __init__(self, matcher: "LLMatcher", eos_id: int) -> None:
        """Start with no tokens."""
        self._matcher = matcher
        self._eos_id = eos_id

    def fill(
        self, mask: NDArray[np.uint8], stop_ids: Iterable[int], banned_ids: Iterable[int], *, is_short: bool
    ) -> None:
        """Set the bits of the tokens that may come next; one that `is_short` stops only if nothing else may come.

        Shapes: mask: (ceil(V / 8),) zeros, the lowest bit first

        Raises:
            EngineError: no token may come, or the form proved too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: len(mask)]
        self._check()
        mask[: len(bits)] = bits
        is_complete = bool(mask[self._eos_id >> 3] >> (self._eos_id & 7) & 1)
        banned = frozenset(banned_ids)
        for token_id in (*banned, self._eos_id):
            mask[token_id >> 3] &= ~(1 << (token_id & 7)) & 0xFF
        if is_complete and not (is_short and mask.any()):
            for token_id in set(stop_ids) - banned:
                mask[token_id >> 3] |= 1 << (token_id & 7)
        if not mask.any():
            raise EngineError("No token may come next: response_format, bad_words and the stop tokens exclude all.")

    def consume(self, token_id: int) -> None:
        """Take the answer's next token.

        Raises:
            EngineError: the form does not allow it, or proved too complex.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _shorten(self._matcher.get_error())
            raise EngineError(f"The answer could not be held to response_format: {reason}")


def create_guide(response_format: str, tokenizer: Tokenizer) -> Guide:
    """Compile a form that `check_format` has passed.

    Raises:
        EngineError: it does not compile.
    """
    matcher = _compile(response_format, tokenizer)
    if matcher.is_error():
        raise EngineError(f"response_format cannot be honoured: {_shorten(matcher.get_error())}")
    return Guide(matcher.deep_copy(), tokenizer.eos_id)


@lru_cache(maxsize=16)
def _compile(response_format: str, tokenizer: Tokenizer) -> "LLMatcher":
    return _create_matcher(_build_grammar(json.loads(response_format), tokenizer.special_id), tokenizer)


def _create_matcher(grammar: str, tokenizer: Tokenizer | None) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(wrap_tokenizer(tokenizer), grammar, limits=LLParserLimits(**_LIMITS), log_level=0)


@lru_cache(maxsize=3)
def wrap_tokenizer(tokenizer: Tokenizer | None) -> "LLTokenizer":
    """A tokenizer as llguidance wants it, in which text never becomes a special token either; None: one of bytes."""
    from llguidance import LLTokenizer, TokenizerWrapper

    class Wrapper(TokenizerWrapper):
        def __init__(self) -> None:
            self.is_tokenizer_wrapper = True
            self.bos_token_id = None
            if tokenizer is None:
                self.tokens = [*(bytes([byte]) for byte in range(256)), b"<special>"]
                self.eos_token_id, self.special_token_ids = _ANY_SPECIAL_ID, [_ANY_SPECIAL_ID]
            else:
                self.tokens = [tokenizer.token_bytes(i, skip_special_tokens=False) for i in range(tokenizer.vocab_size)]
                self.eos_token_id, self.special_token_ids = tokenizer.eos_id, sorted(tokenizer.reserved_ids)

        def __call__(self, s: str) -> list[int]:
            if tokenizer is None:
                return list(s.encode())
            # A form asks for its own bytes, which normalised text may not have.
            ids = tokenizer.encode(s)
            return ids if tokenizer.decode(ids) == s else tokenizer.spell(s)

    return LLTokenizer(Wrapper())


def _build_grammar(form: Mapping[str, Any], find_id: Callable[[str], int]) -> str:
    kind = form["type"]
    if kind == "json_object":
        part = {"json_schema": {"type": "object", "x-guidance": _LAYOUT}}
    elif kind == "json_schema":
        part = {"json_schema": _with_layout(form["json_schema"]["schema"])}
    elif kind == "tool_calls":
        part = {"lark_grammar": _build_call_grammar(form, find_id)}
    elif kind == "choice":
        part = {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(_quote, form["choice"]))}
    else:
        # The regex stands between slashes, on one line; an escape of the caller's own is kept with what it escapes.
        escapes = {"/": r"\/", "\n": r"\n"}
        regex = re.sub(r"(?s)\\.|[/\n]", lambda found: escapes.get(found[0][-1], found[0]), form["regex"])
        part = {"lark_grammar": f"start: /{regex}/"}
    return json.dumps({"grammars": [part]})


def _build_call_grammar(form: Mapping[str, Any], find_id: Callable[[str], int]) -> str:
    calls: list[tuple[str, str]] = []
    for tool in form["tools"]:
        schema = _with_layout(tool["parameters"], is_lenient=not tool["strict"])
        calls.append((tool["name"], json.dumps(schema)))
    return internlm2.build_call_grammar(calls, is_required=form["is_required"], find_id=find_id)


def _with_layout(schema: Mapping[str, Any], *, is_lenient: bool = False) -> dict[str, Any]:
    if "x-guidance" in schema:
        text = "The schema holds 'x-guidance', which is not supported; leave it out."
        raise InputError(text, param="response_format")
    return {**schema, "x-guidance": {**_LAYOUT, "lenient": is_lenient}}


def _quote(text: str) -> str:
    """Return a literal of the grammar: JSON's, which does not mind DEL as the grammar does."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@lru_cache(maxsize=256)
def find_fault(grammar: str) -> str:
    """Say why a grammar cannot be used; nothing if it can. The last answers are kept, until `cache_clear`.

    Raises:
        CapacityError: the machine was too busy to tell. This is not kept.
    """
    if len(grammar) <= _MAX_PLAIN_CHARS and not _COSTLY.search(grammar):
        return validate(grammar)
    command, given, done = child_command("tilewise.inputs.text.grammar_worker"), grammar.encode(), None
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        done = subprocess.run(command, input=given, capture_output=True, timeout=_TIMEOUT_S, env=child_environment())
    if done is None or done.returncode not in (0, *_ENDS_OF_COSTLY):
        text = "response_format could not be checked: this machine is too busy; try again in a moment."
        raise CapacityError(text, param="response_format")
    return TOO_COSTLY if done.returncode else done.stdout.decode(errors="replace")


def validate(grammar: str) -> str:
    """Compile a grammar and say what is wrong with it; nothing if nothing is."""
    # With a tokenizer, if the smallest: only then is everything compiled, and some faults show with the first token.
    matcher = _create_matcher(grammar, None)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return _shorten(matcher.get_error())


def _shorten(error: str) -> str:
    """The line of an error that says what is wrong, without the grammar and without addresses."""
    if error.startswith("panic"):
        return "it is too complex."
    if error.startswith("NoExtension"):
        return "no answer satisfies it."
    line = re.search(r"^error: (.*)", error, re.MULTILINE)
    return line[1] if line else error.partition("\n")[0][:200]
