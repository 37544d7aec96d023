"""On whose errand pictures are fetched and decoded: how long that may take, until when, and who counts the time.

Fetching and decoding lie three calls below whoever knows of a client; a context variable spares those in between the
parameters. Outside an errand nothing is given up or kept.
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
class Errand:
    """What is left of the seconds for all fetching, whether somebody waits, and who hears of stages."""

    left_s: float
    is_wanted: Callable[[], bool]
    on_stage: Callable[[Stage, float], None]


current_errand: ContextVar[Errand | None] = ContextVar("tilewise_errand", default=None)


@contextmanager
def on_errand(
    timeout_s: float, is_wanted: Callable[[], bool], on_stage: Callable[[Stage, float], None] = lambda stage, s: None
) -> Generator[None]:
    """Give all that is fetched inside, in this thread, `timeout_s` together, and up once it is not wanted any more.

    `on_stage` is told of every stage inside: its name and its seconds.
    """
    token = current_errand.set(Errand(timeout_s, is_wanted, on_stage))
    try:
        yield
    finally:
        current_errand.reset(token)


def check_wanted() -> None:
    """Give up a picture that nobody waits for.

    Raises:
        ImageFetchError: nobody does.
    """
    errand = current_errand.get()
    if errand is not None and not errand.is_wanted():
        raise ImageFetchError("The picture is no longer wanted: whoever asked for it has left.")


@contextmanager
def timed(stage: Stage) -> Generator[None]:
    """Time a stage, also one that fails: a host that runs into the time limit must not look fast."""
    started_at = time.perf_counter()
    try:
        yield
    finally:
        if errand := current_errand.get():
            errand.on_stage(stage, time.perf_counter() - started_at)
