"""Drives an engine core by hand, without thread or client."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tilewise.engine.core import EngineCore
from tilewise.engine.messages import Submit
from tilewise.runner.batch import StepLayout
from tilewise.runner.graphs import CapturedStep, StepGraphs
from tilewise.types import FinishReason, Request


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


def answer(core: EngineCore, *requests: Request) -> dict[str, Answer]:
    """Submit all, then step until every one has ended."""
    answers = {request.request_id: Answer() for request in requests}
    outputs = [output for request in requests for output in core.receive(Submit((request,)))]
    while core.has_work or outputs:
        for output in outputs or core.step():
            assert output.error is None, output.error
            state = answers[output.request_id]
            assert state.finish_reason is None
            state.token_ids += output.token_ids
            state.finish_reason = output.finish_reason
            state.cached_tokens = output.cached_tokens
        outputs = []
    return answers


def record_logits(core: EngineCore) -> list[Tensor]:
    """Keep a copy of what every later step samples from: one (B, V) a step."""
    recorded: list[Tensor] = []
    head = core.runner.model.decoder.head
    head.register_forward_hook(lambda _module, _inputs, logits: recorded.append(logits.clone()))
    return recorded


class RecordedGraphs:
    """Graphs of steps that note each replay by the number of its chunks; there may be none to replay."""

    def __init__(self, core: EngineCore) -> None:
        self.num_chunks: list[int] = []
        self._graphs: Any = core.runner.graphs
        if isinstance(self._graphs, StepGraphs):
            double: Any = self
            core.runner.graphs = double

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graphs, name)

    def replay(self, captured: CapturedStep, layout: StepLayout) -> Tensor:
        self.num_chunks.append(len(layout.chunks))
        return self._graphs.replay(captured, layout)
