"""An engine that says what the test tells it to, behind the interface of the real one."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tilewise.engine.client import OnOutput
from tilewise.offline.pipeline import Pipeline
from tilewise.types import FinishReason, Request, StepOutput, TokenLogprob

Script = Callable[[Request], Sequence[StepOutput]]


@dataclass
class ScriptedClient:
    """Plays a script for each request, on a thread of its own; an output without an id gets the request's."""

    script: Script
    submitted: list[Request] = field(default_factory=list)
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
