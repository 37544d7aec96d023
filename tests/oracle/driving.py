"""Drives an engine core by hand, without thread or client."""

from dataclasses import dataclass, field

from torch import Tensor

from tilewise.engine.core import EngineCore
from tilewise.engine.messages import Submit
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
