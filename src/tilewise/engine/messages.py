"""What a client says to an engine; the engine answers with `types.StepOutput`."""

from dataclasses import dataclass

from tilewise.types import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """Answer this request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop computing for this request; unknown ids mean nothing."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the loop; what still runs is aborted."""


Message = Submit | Abort | Shutdown
