"""How long running streams wait between two tokens while pictures arrive.

The streams are one call, read by one thread; every picture is a call of its own. Times are those at which the
caller has a piece, detokenised.
"""

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from serving_parts.work import QUESTION, STREAM_TASK, Pictures, Work
from tilewise import GenerationConfig, Pipeline

Arrivals = list[list[tuple[float, int]]]  # of each stream: when, and how many tokens it had then


def measure_stall(pipe: Pipeline, work: Work, pictures: Pictures) -> dict[str, float]:
    """Streams alone, then with a new picture every `stall_interval_s`."""
    images = pictures.noise([work.stall_size] * (work.stall_pictures + 1))
    _ask_first_s(pipe, images.pop(), work.stall_tokens)
    pipe(STREAM_TASK.format("零"), _generation(work.stall_tokens))
    arrivals: Arrivals = [[] for _ in range(work.streams)]
    enough = threading.Event()
    with ThreadPoolExecutor(len(images) + 1) as pool:
        try:
            streaming = pool.submit(_stream, pipe, work, arrivals, enough)
            time.sleep(work.settle_s + work.quiet_s)
            begins_at = time.perf_counter()
            asked = []
            for number, image in enumerate(images, start=1):
                asked.append(pool.submit(_ask_first_s, pipe, image, work.stall_tokens))
                time.sleep(max(0.0, begins_at + number * work.stall_interval_s - time.perf_counter()))
            ends_at = time.perf_counter()
            first_s = [future.result() for future in asked]
        finally:
            enough.set()
        streaming.result()
    quiet = _describe_gaps(arrivals, begins_at - work.quiet_s, begins_at)
    busy = _describe_gaps(arrivals, begins_at, ends_at)
    ended_early = sum(bool(stream) and stream[-1][1] >= work.stream_tokens for stream in arrivals)
    return {
        "quiet_p50_ms": quiet["p50_ms"],
        "quiet_tokens_per_s": quiet["tokens_per_s"],
        **{f"busy_{name}": value for name, value in busy.items()},
        "picture_first_token_ms": 1e3 * float(np.median(first_s)),
        "streams_ended_early": ended_early,
    }


def _generation(num_tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True)


def _stream(pipe: Pipeline, work: Work, arrivals: Arrivals, enough: threading.Event) -> None:
    """Note when tokens arrive until there are enough; what runs then is aborted."""
    prompts = [STREAM_TASK.format(number) for number in range(work.streams)]
    for piece in pipe.stream_infer(prompts, _generation(work.stream_tokens)):
        arrivals[piece.session_id].append((time.perf_counter(), piece.generate_token_len))
        if enough.is_set():
            return


def _ask_first_s(pipe: Pipeline, image: Image.Image, num_tokens: int) -> float:
    """Seconds to the first token of an answer, which is then taken to its end."""
    started_at = time.perf_counter()
    arrived_at = [time.perf_counter() for _ in pipe.stream_infer((QUESTION, image), _generation(num_tokens))]
    return arrived_at[0] - started_at


def _describe_gaps(arrivals: Sequence[Sequence[tuple[float, int]]], start: float, end: float) -> dict[str, float]:
    """Gaps that end between two moments, of all streams together, and the tokens that came with them."""
    pairs = [
        (later[0] - earlier[0], later[1] - earlier[1])
        for stream in arrivals
        for earlier, later in itertools.pairwise(stream)
        if start <= later[0] <= end
    ]
    if not pairs:
        raise RuntimeError("No stream had two tokens in the time that was watched; this device is too slow for it.")
    gaps_ms = 1e3 * np.array([gap for gap, _ in pairs])
    p50, p90, p99 = np.percentile(gaps_ms, (50, 90, 99))
    tokens_per_s = sum(count for _, count in pairs) / (end - start)
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "max_ms": float(gaps_ms.max()),
        "tokens_per_s": tokens_per_s,
    }
