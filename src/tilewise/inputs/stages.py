"""How long the stages of a picture took, told to whoever listens in the same context.

Fetching and decoding lie three calls below whoever counts; a context variable spares those in between a parameter.
Without a listener nothing is kept.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Stage = Literal["fetch", "decode"]
Listener = Callable[[Stage, float], None]

_listener: ContextVar[Listener | None] = ContextVar("tilewise_stages", default=None)


@contextmanager
def heard_by(listener: Listener) -> Generator[None]:
    """Tell `listener` of every stage inside, in this thread: its name and its seconds."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def timed(stage: Stage) -> Generator[None]:
    """Time a stage, also one that fails: a host that runs into the time limit must not look fast."""
    started_at = time.perf_counter()
    try:
        yield
    finally:
        listener = _listener.get()
        if listener is not None:
            listener(stage, time.perf_counter() - started_at)
