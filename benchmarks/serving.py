"""Everything that serving on one GPU is held to, in one process: a table for people, and one JSON line at the end.

    python benchmarks/serving.py [MODEL] [--parts seed,mixed] [--http] [--quick] [ENGINE_OPTION=VALUE ...]

Engine options are `EngineConfig`'s fields, as `max_batch_size=64`. A part that fails is named in the table's place,
the others go on, and the exit status is 1. `--http` needs the server's packages (`pip install 'tilewise[server]'`).
"""

import argparse
import ast
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serving_parts.bars import BARS, Bar, Figures, compare, print_table
from serving_parts.doors import PipelineDoor, measure_again, measure_seed
from serving_parts.load import measure_memory, measure_mixed_stages, read_beside_bytes
from serving_parts.machine import HostMemoryWatch, describe_machine, process_age_s
from serving_parts.stall import measure_stall
from serving_parts.work import QUICK, Pictures, Work, load_base

from tilewise import EngineConfig, Pipeline, TilewiseError, pipeline
from tilewise.cli.flags import to_argv
from tilewise.demo import picture_path
from tilewise.plan import count_weights

PARTS = ("start", "seed", "again", "mixed", "stall", "memory")
_FIRST_ANSWER_TOKENS = 8
_BARS_MODEL = range(25 * 10**9, 26 * 10**9)  # parameters of InternVL-Chat-V1-5


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `options` are the engine's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="MODEL | NAME=VALUE", help="default: the embedded model")
    parser.add_argument("--parts", default=",".join(PARTS), help="between commas, of: %(default)s")
    parser.add_argument("--http", action="store_true", help="seed and mixed parts over HTTP too, in turn with offline")
    parser.add_argument("--http-rounds", type=int, default=Work.http_rounds, help="of --http, each both ways")
    parser.add_argument("--quick", action="store_true", help="so little that it runs anywhere; its figures say nothing")
    parser.add_argument("--picture", default=picture_path(), help="the seed part's; brought to 600x400")
    parser.add_argument("--bars", choices=BARS, help="of which weights; default: bf16 if MODEL is the bars' own")
    parser.add_argument("--device", help="as the engine option")
    parser.add_argument("--load-format", choices=("auto", "dummy"), help="as the engine option")
    args = parser.parse_intermixed_args(argv)
    args.work = replace(QUICK if args.quick else Work(), http_rounds=args.http_rounds)
    args.seed = int(time.time())
    args.parts = args.parts.split(",")
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts has no {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}.")
    if args.http and not {"seed", "mixed"} & set(args.parts):
        parser.error("--http measures the parts seed and mixed; add one to --parts.")
    models = [word for word in args.words if "=" not in word]
    if len(models) > 1:
        parser.error(f"{models[1]!r} is a second MODEL; give engine options as NAME=VALUE.")
    args.model = models[0] if models else None
    args.options = {name: getattr(args, name) for name in ("device", "load_format") if getattr(args, name)}
    for word in args.words:
        name, sign, value = word.partition("=")
        if sign:
            args.options[name] = _read_value(value)
    return args


def _read_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def run_parts(measures: Mapping[str, Callable[[], Figures]]) -> tuple[Figures, dict[str, str]]:
    """Run each part; return all figures, and what went wrong in parts that failed."""
    figures: Figures = {}
    failed: dict[str, str] = {}
    for part, measure in measures.items():
        print(f"{process_age_s():7.1f} s  {part}", file=sys.stderr, flush=True)
        try:
            measured = measure()
        except Exception as error:  # the other parts' figures are worth having
            traceback.print_exc()
            failed[part] = f"{type(error).__name__}: {error}"
            continue
        print(json.dumps(measured), file=sys.stderr, flush=True)  # for who ends this before its end
        figures |= {f"{part}.{name}": value for name, value in measured.items()}
    return figures, failed


def open_pipeline(args: argparse.Namespace) -> Pipeline:
    """The pipeline that all parts are about."""
    config = EngineConfig.from_options(args.options)
    return pipeline(args.model, backend_config=config, max_dynamic_patch=args.work.max_tiles)


def open_pictures(args: argparse.Namespace, number: int = 0) -> Pictures:
    """Pictures that no other run and no other number has."""
    return Pictures(load_base(args.picture), args.seed + number)


def measure_start(args: argparse.Namespace, pictures: Pictures) -> tuple[Pipeline, Figures]:
    """Load and answer once. Graphs are captured in loading."""
    with HostMemoryWatch() as watch:
        pipe = open_pipeline(args)
        loaded_s = process_age_s()
        door = PipelineDoor(pipe)
        door.ask([door.prepare(pictures.one_pixel(), _FIRST_ANSWER_TOKENS)])
        answered_s = process_age_s()
    figures: Figures = {"loaded_s": loaded_s, "first_answer_s": answered_s, **watch.figures()}
    if pipe.engine.resolved.use_cuda_graphs:
        figures["captured_s"] = loaded_s
    return pipe, figures


def measure_all(args: argparse.Namespace, pipe: Pipeline, start: Figures, pictures: Pictures) -> dict[str, Any]:
    """Run the chosen parts on an open pipeline, and close it."""
    work: Work = args.work
    door, beside_bytes = PipelineDoor(pipe), read_beside_bytes(pipe)
    measures: dict[str, Callable[[], Figures]] = {
        "start": lambda: start,
        "seed": lambda: dict(measure_seed(door, work, pictures)),
        "again": lambda: dict(measure_again(door, work, pictures)),
        "mixed": lambda: dict(measure_mixed_stages(pipe, work, pictures)),
        "stall": lambda: dict(measure_stall(pipe, work, pictures)),
        "memory": lambda: measure_memory(pipe, work, pictures, beside_bytes),
    }
    chosen = {part: measure for part, measure in measures.items() if part in args.parts}
    if args.http:
        from serving_parts.over_http import measure_http

        tiles = {} if work.max_tiles is None else {"max_dynamic_patch": work.max_tiles}
        arguments = [*([] if args.model is None else [args.model]), *to_argv({**args.options, **tiles})]
        chosen["http"] = lambda: dict(
            measure_http(
                pipe,
                lambda: open_pipeline(args),
                arguments,
                work,
                lambda number: open_pictures(args, 1 + number),
                args.parts,
            )
        )
    with pipe:
        figures, failed = run_parts(chosen)
    return {"figures": figures, "failed": failed}


def choose_bars(args: argparse.Namespace, pipe: Pipeline) -> Mapping[str, Bar]:
    """The bars asked for, or those of the model, if there are any."""
    if args.bars:
        return BARS[args.bars]
    is_theirs = count_weights(pipe.engine.resolved.model).total in _BARS_MODEL
    return BARS["bf16"] if is_theirs and not args.quick else {}


def main() -> None:
    args = parse_arguments()
    try:
        pictures = open_pictures(args)
        pipe, start = measure_start(args, pictures)
    except (TilewiseError, OSError) as error:
        raise SystemExit(f"serving.py: {error}") from None
    result = measure_all(args, pipe, start, pictures)
    bars = choose_bars(args, pipe)
    print_table(result["figures"], bars)
    for part, reason in result["failed"].items():
        print(f"FAILED {part}: {reason}")
    said = {
        "benchmark": "serving",
        "model": args.model or "embedded",
        "options": args.options,
        "is_quick": args.quick,
        **describe_machine(pipe.engine.resolved.device.name),
        **result,
        "figures": {
            key: round(value, 3) if isinstance(value, float) else value for key, value in result["figures"].items()
        },
        "compared": compare(result["figures"], bars),
    }
    print(json.dumps(said, ensure_ascii=False))
    sys.exit(bool(result["failed"]))


if __name__ == "__main__":
    main()
