"""Score a model folder on held-out scenes through the public pipeline: `python -m training.evaluate MODEL`.

Prints a table and ends with one JSON line. `--max-tiles 1` shows what a model sees without tiling; `--compare MODEL`
asks a second model, or the same one with other options, the same questions and counts where they differ.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from training.scenes import EVALUATED, LANGUAGES, create_question
from training.scenes.sample import Sample, Turn
from training.scores import as_data, is_right, show_table, tally

from tilewise import GenerationConfig, pipeline
from tilewise.demo import model_folder
from tilewise.vl import encode_image_base64

_CHUNK = 64
_GENERATION = GenerationConfig(max_new_tokens=64, skip_special_tokens=False)
_END = "<|im_end|>"


def create_questions(tasks: Sequence[str], number: int, first: int = 0) -> Iterator[Sample]:
    """`number` questions a task, half in each language, tasks in turn."""
    for i in range(number):
        for task in tasks:
            yield create_question(task, LANGUAGES[i % 2], first + i // 2)


def as_prompt(sample: Sample, max_tiles: int | None) -> object:
    """A sample's first question as the pipeline takes it."""
    question = sample.turns[0].question
    if not sample.pictures:
        return question
    if max_tiles is None:
        return question, [picture.image for picture in sample.pictures]
    urls = ["data:image/png;base64," + encode_image_base64(picture.image) for picture in sample.pictures]
    parts = [{"type": "image_url", "image_url": {"url": url, "max_dynamic_patch": max_tiles}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def ask(model: str, samples: Sequence[Sample], max_tiles: int | None, options: Mapping[str, Any]) -> list[str]:
    """Every sample's answer, with the marks of regions and without the end."""
    answers: list[str] = []
    with pipeline(model, **options) as pipe:
        left = iter(samples)
        while chunk := list(islice(left, _CHUNK)):
            responses = pipe([as_prompt(sample, max_tiles) for sample in chunk], _GENERATION, use_tqdm=False)
            answers += [response.text.removesuffix(_END) for response in responses]
    return answers


def compare(turns: Sequence[Turn], first: Sequence[str], second: Sequence[str]) -> dict[str, int]:
    """How often the answers are equal, and where only one of both is right."""
    pairs = [(is_right(turn, a), is_right(turn, b)) for turn, a, b in zip(turns, first, second, strict=True)]
    return {
        "number": len(pairs),
        "equal": sum(a == b for a, b in zip(first, second, strict=True)),
        "only_first_right": sum(a and not b for a, b in pairs),
        "only_second_right": sum(b and not a for a, b in pairs),
    }


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Engine options given as name=value; a value is JSON where it can be."""
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def main(argv: list[str] | None = None) -> None:
    """Ask, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(model_folder()), help="folder of the model")
    parser.add_argument("--number", type=int, default=1000, help="questions a task")
    parser.add_argument("--first", type=int, default=0, help="number of the first question")
    parser.add_argument("--tasks", nargs="+", choices=list(EVALUATED), default=list(EVALUATED))
    parser.add_argument("--max-tiles", type=int, help="max_dynamic_patch of every picture")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="NAME=VALUE", help="engine options, as dtype=float16"
    )
    parser.add_argument("--compare", help="folder of a second model")
    parser.add_argument("--compare-options", nargs="*", default=[], metavar="NAME=VALUE", help="its engine options")
    arguments = parser.parse_args(argv)
    samples = list(create_questions(arguments.tasks, arguments.number, arguments.first))
    turns = [sample.turns[0] for sample in samples]
    started = time.perf_counter()
    answers = ask(arguments.model, samples, arguments.max_tiles, parse_options(arguments.options))
    scores = tally(zip(turns, answers, strict=True))
    print(show_table(scores))
    summary: dict[str, object] = {
        "model": Path(arguments.model).name,
        "max_tiles": arguments.max_tiles,
        "options": arguments.options,
        "seconds": round(time.perf_counter() - started, 1),
        "scores": as_data(scores),
    }
    if arguments.compare:
        other = ask(arguments.compare, samples, arguments.max_tiles, parse_options(arguments.compare_options))
        print(show_table(tally(zip(turns, other, strict=True))))
        summary["paired"] = compare(turns, answers, other)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
