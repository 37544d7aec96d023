"""One request after another, and many at once: the same clock for the pipeline and for a server.

A door prepares a request, which is not timed, and asks: it sends all at once, waits for every answer, and fails where
one does not have its tokens.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from serving_parts.work import MIXED_SIZES, QUESTION, Pictures, Work, decode_jpeg, encode_jpeg
from tilewise import GenerationConfig, Pipeline

_WARM_UP_TOKENS = 8


class Door(Protocol):
    """Where questions about a picture are asked."""

    def prepare(self, picture: Image.Image, num_tokens: int) -> Any:
        """Everything that a client has ready before the clock runs."""
        ...

    def ask(self, requests: Sequence[Any]) -> None:
        """Ask all at once and wait for every answer."""
        ...


class PipelineDoor:
    """The pipeline of this process; with `uses_jpeg` it sees what a server sees of a JPEG."""

    def __init__(self, pipe: Pipeline, *, uses_jpeg: bool = False) -> None:
        """`pipe` stays the caller's to close."""
        self._pipe = pipe
        self._uses_jpeg = uses_jpeg

    def prepare(self, picture: Image.Image, num_tokens: int) -> tuple[tuple[str, Image.Image], GenerationConfig]:
        """A prompt, and how it is to be continued."""
        seen = decode_jpeg(encode_jpeg(picture)) if self._uses_jpeg else picture
        return (QUESTION, seen), GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True)

    def ask(self, requests: Sequence[tuple[tuple[str, Image.Image], GenerationConfig]]) -> None:
        """One call."""
        prompts, generations = zip(*requests, strict=True)
        responses: list[Any] = self._pipe.batch_infer(prompts, generations, use_tqdm=False)
        check_lengths(
            [response.generate_token_len for response in responses], [given.max_new_tokens for given in generations]
        )


def check_lengths(counted: Sequence[int], wanted: Sequence[int]) -> None:
    """Refuse figures of answers that ended early."""
    if list(counted) != list(wanted):
        raise RuntimeError(f"Answers have {list(counted)} tokens, not {list(wanted)}; raise session_len.")


def measure_seed(door: Door, work: Work, pictures: Pictures) -> dict[str, float]:
    """Whole calls about one picture, never the same: of one new token, and of many."""
    calls: dict[int, list[float]] = {1: [], work.answer_tokens: []}
    for _ in range(work.warm_ups + work.runs):
        for num_tokens, seconds in calls.items():
            seconds.append(_time(door, [door.prepare(pictures.one_pixel(), num_tokens)]))
    first_s, whole_s = (statistics.median(seconds[work.warm_ups :]) for seconds in calls.values())
    return {
        "first_token_ms": 1e3 * first_s,
        "whole_ms": 1e3 * whole_s,
        "per_token_ms": 1e3 * (whole_s - first_s) / (work.answer_tokens - 1),
    }


def measure_again(door: Door, work: Work, pictures: Pictures) -> dict[str, float]:
    """Whole calls of one new token about a picture that was asked about just before."""
    seconds: list[float] = []
    for _ in range(work.warm_ups + work.runs):
        request = door.prepare(pictures.one_pixel(), 1)
        door.ask([request])
        seconds.append(_time(door, [request]))
    return {"first_token_ms": 1e3 * statistics.median(seconds[work.warm_ups :])}


def prepare_mixed(door: Door, work: Work, pictures: Pictures) -> list[Any]:
    """The mixed batch's requests, once one of each size has been answered to warm up."""
    door.ask([door.prepare(picture, _WARM_UP_TOKENS) for picture in pictures.noise(MIXED_SIZES)])
    sizes = [MIXED_SIZES[number % len(MIXED_SIZES)] for number in range(work.mixed_requests)]
    return [door.prepare(picture, work.mixed_tokens) for picture in pictures.noise(sizes)]


def measure_mixed(door: Door, work: Work, requests: Sequence[Any]) -> dict[str, float]:
    """Ask all of `prepare_mixed` at once."""
    seconds = _time(door, requests)
    rate = len(requests) / seconds
    return {"seconds": seconds, "requests_per_s": rate, "tokens_per_s": rate * work.mixed_tokens}


def _time(door: Door, requests: Sequence[Any]) -> float:
    started_at = time.perf_counter()
    door.ask(requests)
    return time.perf_counter() - started_at
