"""Times the embedded model on the bundled picture: loading, first token, tokens a second alone and in a batch.

Prints a table for people and ends in one JSON line for programs. The numbers say how this machine compares with
itself, not how large models run.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass

from tilewise import GenerationConfig, Pipeline, pipeline
from tilewise.demo import picture_path


@dataclass
class Result:
    load_s: float
    first_token_s: float
    tokens_per_s: float
    batch_size: int
    batch_tokens_per_s: float


def time_stream(pipe: Pipeline, generation: GenerationConfig) -> tuple[float, float]:
    """Return the seconds to the first token, and the tokens a second after it."""
    started_at = time.perf_counter()
    arrivals = [time.perf_counter() for _ in pipe.stream_infer(("What is in it?", str(picture_path())), generation)]
    return arrivals[0] - started_at, (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], 1e-9)


def time_batch(pipe: Pipeline, generation: GenerationConfig, batch_size: int) -> float:
    """Return the tokens a second of `batch_size` prompts without pictures."""
    started_at = time.perf_counter()
    pipe([f"Question {number}?" for number in range(batch_size)], generation)
    return batch_size * generation.max_new_tokens / (time.perf_counter() - started_at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    generation = GenerationConfig(max_new_tokens=args.new_tokens, ignore_eos=True)
    started_at = time.perf_counter()
    with pipeline() as pipe:
        load_s = time.perf_counter() - started_at
        pipe("warm up", GenerationConfig(max_new_tokens=2))
        first_token_s, tokens_per_s = time_stream(pipe, generation)
        batch_tokens_per_s = time_batch(pipe, generation, args.batch_size)
    result = asdict(Result(load_s, first_token_s, tokens_per_s, args.batch_size, batch_tokens_per_s))
    for name, value in result.items():
        print(f"{name:<20} {value:>10.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
