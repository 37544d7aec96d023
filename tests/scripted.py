"""Doubles behind the interfaces of the real parts: an engine that says what the test tells it to, a builder that
calls the test, and a tokenizer of which the test replaces a method.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tilewise.engine.client import OnOutput
from tilewise.inputs.conversation import Message
from tilewise.inputs.request_builder import RequestBuilder
from tilewise.inputs.text.detokenizer import Detokenizer
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.offline.pipeline import Pipeline
from tilewise.types import FinishReason, GenerationConfig, Request, StepOutput, TokenLogprob

Script = Callable[[Request], Sequence[StepOutput]]


@dataclass
class ScriptedClient:
    """Plays a script for each request, on a thread of its own; an output without an id gets the request's."""

    script: Script
    submitted: list[Request] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    is_dead: bool = False
    num_closed: int = 0

    def __post_init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Request, OnOutput] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        while (job := self._jobs.get()) is not None:
            request, on_output = job
            for output in self.script(request):
                on_output(replace(output, request_id=output.request_id or request.request_id))

    def submit(self, request: Request, on_output: OnOutput, more: Sequence[tuple[Request, OnOutput]] = ()) -> None:
        self.batch_sizes.append(1 + len(more))
        for each, sink in ((request, on_output), *more):
            self.submitted.append(each)
            self._jobs.put((each, sink))

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> dict[str, float]:
        return {}

    def is_alive(self) -> bool:
        return not self.is_dead

    def close(self) -> None:
        self.num_closed += 1
        self._jobs.put(None)
        self._thread.join()


def do_nothing() -> None:
    pass


@dataclass(frozen=True)
class HookedBuilder(RequestBuilder):
    """Calls the test before it builds a request, and before it reads each token of an answer."""

    before_build: Callable[[], object] = do_nothing
    before_token: Callable[[], object] = do_nothing

    @classmethod
    def wrap(cls, builder: RequestBuilder, **hooks: Callable[[], object]) -> "HookedBuilder":
        return cls(**{part.name: getattr(builder, part.name) for part in fields(builder)}, **hooks)

    def build(
        self, messages: Sequence[Message], generation: GenerationConfig, request_id: str, namespace: str = ""
    ) -> Request:
        self.before_build()
        return super().build(messages, generation, request_id, namespace)

    def create_detokenizer(self, generation: GenerationConfig) -> Detokenizer:
        detokenizer = super().create_detokenizer(generation)
        push = detokenizer.push

        def push_after_hook(*arguments: Any, **options: Any) -> str:
            self.before_token()
            return push(*arguments, **options)

        detokenizer.push = push_after_hook  # type: ignore[method-assign]
        return detokenizer


class TokenizerDouble:
    """A tokenizer whose `methods` are the test's; everything else is the real one's."""

    def __init__(self, tokenizer: Tokenizer, **methods: Callable[..., Any]) -> None:
        self._tokenizer = tokenizer
        vars(self).update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


MakePipeline = Callable[..., tuple[Pipeline, ScriptedClient]]


def say(ids: Sequence[int], end: FinishReason = FinishReason.LENGTH, stop_id: int | None = None) -> list[StepOutput]:
    """One output a token, as the engine emits them; a stop token comes last where one is given."""
    tokens = [*ids] if stop_id is None else [*ids, stop_id]
    return [
        StepOutput(
            "",
            (token_id,),
            (TokenLogprob(token_id, -1.0),),
            finish_reason=end if number == len(tokens) - 1 else None,
        )
        for number, token_id in enumerate(tokens)
    ]
