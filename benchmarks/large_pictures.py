"""How long streams wait beside large pictures: gaps between their tokens, and the pictures' first tokens.

    python benchmarks/large_pictures.py [MODEL] [--streams 16] [--pictures 8] [--interval-s 1.0] [OPTION=VALUE ...]

The engine has a process of its own, as behind HTTP. Streams run alone first, then beside pictures of each kind:
ordinary ones of 640x480, and such of 7000x7000 pixels in a few kilobytes of JPEG, cut into one tile and into as many as
the model takes. No two pictures are alike. Prints a table, and one JSON line at the end. Units: milliseconds.
"""

import argparse
import ast
import base64
import io
import itertools
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from serving_parts.machine import describe_machine

from tilewise import EngineConfig, GenerationConfig, Pipeline
from tilewise.engine.launch import find_checkpoint, launch_engine
from tilewise.inputs.request_builder import create_builder

QUESTION, STORY = "请描述图中内容", "写一个很长的故事，编号 {}"
PICTURE_TOKENS, STREAM_TOKENS = 4, 4000
KINDS: dict[str, tuple[tuple[int, int], int | None]] = {
    "640x480": ((640, 480), None),
    "7000x7000, 1 tile": ((7000, 7000), 1),
    "7000x7000": ((7000, 7000), None),
}


def draw_url(size: tuple[int, int], number: int) -> str:
    """A picture of one colour, which costs its sender next to nothing; no two have the same colour."""
    colour = (8 * number % 256, number // 32 * 8 % 256, 77)  # steps that JPEG's rounding keeps apart
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def open_pipeline(model: str | None, options: dict[str, Any]) -> Pipeline:
    """A pipeline whose engine has a process of its own."""
    config = EngineConfig(**options)
    checkpoint = find_checkpoint(model, config)
    builder = create_builder(checkpoint.folder, checkpoint.model)
    return Pipeline(
        launch_engine(checkpoint, config, in_process=False, num_tokens=builder.tokenizer.vocab_size), builder
    )


def ask_first_s(pipe: Pipeline, url: str, max_tiles: int | None) -> float:
    """Seconds to the first token of an answer, which is then taken to its end."""
    cut = {} if max_tiles is None else {"max_dynamic_patch": max_tiles}
    content = [{"type": "image_url", "image_url": {"url": url, **cut}}, {"type": "text", "text": QUESTION}]
    generation = GenerationConfig(max_new_tokens=PICTURE_TOKENS, ignore_eos=True)
    started_at = time.perf_counter()
    moments = [time.perf_counter() for _ in pipe.stream_infer([{"role": "user", "content": content}], generation)]
    return moments[0] - started_at


class Streams:
    """Texts that run in the background, read by one thread."""

    def __init__(self, pipe: Pipeline, number: int) -> None:
        """Start them."""
        self._pipe = pipe
        self._times: list[list[float]] = [[] for _ in range(number)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        prompts = [STORY.format(index) for index in range(len(self._times))]
        generation = GenerationConfig(max_new_tokens=STREAM_TOKENS, ignore_eos=True)
        for piece in self._pipe.stream_infer(prompts, generation):
            self._times[piece.session_id].append(time.perf_counter())
            if self._ended.is_set():
                return

    def describe(self, begins_at: float, ends_at: float) -> dict[str, float]:
        """The gaps that ended between two moments, of all streams together."""
        gaps = [
            1e3 * (later - earlier)
            for times in self._times
            for earlier, later in itertools.pairwise(times)
            if begins_at <= later <= ends_at
        ]
        p50, p99 = np.percentile(gaps, (50, 99))
        rate = len(gaps) / (ends_at - begins_at)
        return {"gap_p50": p50, "gap_p99": p99, "gap_max": max(gaps), "tokens_per_s": rate}

    def stop(self) -> None:
        """End them all."""
        self._ended.set()
        self._thread.join()


def measure_kind(
    pipe: Pipeline, streams: Streams, urls: list[str], max_tiles: int | None, interval_s: float
) -> dict[str, float]:
    """Send pictures of one kind, and wait for all of them."""
    with ThreadPoolExecutor(len(urls)) as pool:
        begins_at = time.perf_counter()
        asked: list[Future[float]] = []
        for number, url in enumerate(urls, start=1):
            asked.append(pool.submit(ask_first_s, pipe, url, max_tiles))
            time.sleep(max(0.0, begins_at + number * interval_s - time.perf_counter()))
        first_s = [future.result() for future in asked]
    gaps = streams.describe(begins_at, time.perf_counter())
    return {**gaps, "first_token": 1e3 * float(np.median(first_s))}


def measure(pipe: Pipeline, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the streams alone and beside each kind of picture."""
    # Drawn before anything is timed: it keeps this process, which reads the streams, from running.
    urls = {
        name: [draw_url(size, 1000 * kind + number) for number in range(args.pictures + 1)]
        for kind, (name, (size, _)) in enumerate(KINDS.items())
    }
    for name, (_, max_tiles) in KINDS.items():  # what happens once happens here
        ask_first_s(pipe, urls[name].pop(), max_tiles)
    streams = Streams(pipe, args.streams)
    try:
        time.sleep(args.settle_s)
        begins_at = time.perf_counter()
        time.sleep(args.settle_s)
        results = {"alone": streams.describe(begins_at, time.perf_counter())}
        for name, (_, max_tiles) in KINDS.items():
            results[name] = measure_kind(pipe, streams, urls[name], max_tiles, args.interval_s)
    finally:
        streams.stop()
    return results


def main() -> None:
    """Measure, print a table, end in a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="MODEL | NAME=VALUE", help="default: the embedded model")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--interval-s", type=float, default=1.0)
    parser.add_argument("--settle-s", type=float, default=3.0)
    args = parser.parse_intermixed_args()
    pairs = [word.partition("=") for word in args.words if "=" in word]
    options = {name: ast.literal_eval(value) for name, _, value in pairs}
    model = next((word for word in args.words if "=" not in word), None)
    with open_pipeline(model, options) as pipe:
        results = measure(pipe, args)
        device = pipe.engine.resolved.device.name
    for name, figures in results.items():
        print(f"{name:20}", *(f"{key} {value:9.1f}" for key, value in figures.items()), sep="  ")
    rounded = {name: {key: round(value, 1) for key, value in figures.items()} for name, figures in results.items()}
    print(json.dumps({"benchmark": "large_pictures", **describe_machine(device), "figures": rounded}))


if __name__ == "__main__":
    main()
