"""InternVL2.5-1B's shapes on a CPU beside transformers' own, in one run: seconds to the first token, and tokens/s.

    python benchmarks/laptop.py [--dtypes float32,bfloat16] [--tiles 7] [--tokens 32] [--rounds 3]

Both have random weights, the same picture in tiles, prompts of the same length and all cores; rounds alternate, and the
best of each counts. The picture and the words are new each time, so that nothing is found in a cache. transformers
runs the same shapes in its own layout (its SDPA attention). Ends with one JSON line.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from members import FAMILY, write_member
from PIL import Image
from serving_parts.machine import describe_machine

from tilewise import GenerationConfig, pipeline

OURS, THEIRS = "InternVL2_5-1B", "InternVL3-1B-hf"  # the same shapes in the two layouts
TOKENS_PER_TILE = 256
SIZES = {1: (448, 448), 3: (896, 448), 7: (600, 400), 13: (800, 600)}

# Seconds that an answer of so many tokens about picture number so-and-so takes.
Ask = Callable[[int, int], float]


def draw(number: int, num_tiles: int) -> Image.Image:
    """A picture that no other has the pixels of."""
    return Image.effect_noise(SIZES[num_tiles], 40 + number).convert("RGB")


def open_ours(folder: Path, dtype: str, num_tiles: int) -> tuple[Ask, Callable[[], Any], list[int]]:
    """The pipeline as users open it; `lengths` has the prompts' tokens."""
    pipe = pipeline(str(folder), load_format="dummy", dtype=dtype, device="cpu", enable_prefix_caching=False)
    lengths: list[int] = []

    def ask(number: int, num_tokens: int) -> float:
        generation = GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True)
        prompt = (f"{number}: describe the picture.", draw(number, num_tiles))
        started = time.perf_counter()
        response = pipe(prompt, generation)
        seconds = time.perf_counter() - started
        assert response.generate_token_len == num_tokens
        lengths.append(response.input_token_len)
        return seconds

    return ask, pipe.close, lengths


def open_theirs(dtype: str, num_tiles: int, num_ids: int) -> Ask:
    """Transformers' own class; pixels are ready before the clock runs."""
    from transformers import AutoConfig, InternVLForConditionalGeneration

    config = AutoConfig.from_pretrained(FAMILY / THEIRS)
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).to(getattr(torch, dtype)).eval()
    size = config.vision_config.image_size[0]

    def ask(number: int, num_tokens: int) -> float:
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randn(num_tiles, 3, size, size, generator=generator).to(getattr(torch, dtype))
        ids = torch.randint(1000, (1, num_ids), generator=generator)
        ids[0, 20 : 20 + num_tiles * TOKENS_PER_TILE] = config.image_token_id
        wanted = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **wanted)
        seconds = time.perf_counter() - started
        assert out.shape[1] - num_ids == num_tokens or out.shape[1] == num_tokens
        return seconds

    return ask


def measure(asks: dict[str, Ask], num_tokens: int, num_rounds: int) -> dict[str, dict[str, float]]:
    """The best round of each: seconds to the first token, and tokens a second behind it."""
    firsts: dict[str, list[float]] = {name: [] for name in asks}
    rests: dict[str, list[float]] = {name: [] for name in asks}
    number = 0
    for _ in range(num_rounds):
        for name, ask in asks.items():
            number += 2
            firsts[name].append(ask(number, 1))
            rests[name].append(ask(number + 1, num_tokens))
    figures: dict[str, dict[str, float]] = {}
    for name in asks:
        first = min(firsts[name])
        figures[name] = {"first_token_s": round(first, 2)}
        figures[name]["tokens_per_s"] = round((num_tokens - 1) / (min(rests[name]) - first), 2)
    return figures


def main() -> None:
    """Measure each dtype, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tiles", type=int, default=7, choices=list(SIZES))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in arguments.dtypes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            ask_ours, close, lengths = open_ours(write_member(OURS, Path(folder)), dtype, arguments.tiles)
            ask_ours(0, 1)  # warms both up, and tells how long the prompt is
            ask_theirs = open_theirs(dtype, arguments.tiles, lengths[0])
            ask_theirs(0, 1)
            asks = {"tilewise": ask_ours, "transformers": ask_theirs}
            results[dtype] = measure(asks, arguments.tokens, arguments.rounds)
            close()
        del ask_ours, ask_theirs, asks
        gc.collect()
        for name, figures in results[dtype].items():
            print(
                f"{dtype:<10}{name:<14}{figures['first_token_s']:>8} s {figures['tokens_per_s']:>8} tokens/s",
                flush=True,
            )
    options = {"tiles": arguments.tiles, "prompt_tokens": lengths[0], "tokens": arguments.tokens}
    print(json.dumps({"machine": describe_machine("cpu"), **options, "results": results}))


if __name__ == "__main__":
    main()
