"""What fetching and decoding of one request's pictures share: seconds left, whether the client waits, who is timed.

Both lie three calls below the code that knows of a client; a context variable spares those in between the parameters.
Outside a context nothing is given up early or timed.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from tilewise.errors import ImageFetchError

Stage = Literal["fetch", "decode"]


@dataclass(slots=True)
class FetchContext:
    """What is left of the seconds for all fetching and for decoders, whether somebody waits, who hears of stages.

    The two are apart: a client whose picture has waited for other clients' must not be told that its host was slow.
    """

    left_s: float
    decoder_left_s: float
    is_wanted: Callable[[], bool]
    on_stage: Callable[[Stage, float], None]


current_context: ContextVar[FetchContext | None] = ContextVar("tilewise_fetch_context", default=None)


@contextmanager
def use_fetch_context(
    timeout_s: float, is_wanted: Callable[[], bool], on_stage: Callable[[Stage, float], None] = lambda stage, s: None
) -> Generator[None]:
    """Give all that is fetched inside, in this thread, `timeout_s` together, and up once it is not wanted any more.

    Waiting for decoders has as many seconds of its own.
    `on_stage` is told of every stage inside: its name and its seconds.
    """
    token = current_context.set(FetchContext(timeout_s, timeout_s, is_wanted, on_stage))
    try:
        yield
    finally:
        current_context.reset(token)


def check_wanted() -> None:
    """Give up a picture that nobody waits for.

    Raises:
        ImageFetchError: nobody does.
    """
    context = current_context.get()
    if context is not None and not context.is_wanted():
        raise ImageFetchError("The picture is no longer wanted: its client has left.")


@contextmanager
def timed(stage: Stage) -> Generator[None]:
    """Time a stage, also one that fails: a host that runs into the time limit must not look fast."""
    started_at = time.perf_counter()
    try:
        yield
    finally:
        if context := current_context.get():
            context.on_stage(stage, time.perf_counter() - started_at)
