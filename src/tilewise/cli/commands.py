"""What each command of the command line does; everything heavy is imported where it is used."""

import argparse
import contextlib
import os
import platform
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import msgspec

from tilewise import __version__
from tilewise.cli.flags import ENGINE_HELP, GENERATION_HELP, PICTURE_HELP, SERVER_HELP, given_flags, to_argv
from tilewise.config import ChatTemplateConfig, EngineConfig
from tilewise.errors import ConfigError, InputError
from tilewise.terminal import UNPRINTABLE
from tilewise.types import GenerationConfig, Response

if TYPE_CHECKING:
    from tilewise.offline.pipeline import Pipeline

DEMO_QUESTION = "请描述图中内容"
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "random_seed")
_PACKAGES = (
    *("torch", "triton", "numpy", "safetensors", "sentencepiece", "pillow", "huggingface_hub", "rich"),
    *("gradio", "fastapi", "ray", "modelscope"),
)
_GIB = 1 << 30


def run_plan(args: argparse.Namespace) -> None:
    """Print what a model takes on a GPU, and what makes it fit."""
    from tilewise.cli.plan import print_plan

    print_plan(args)


def run_generate(args: argparse.Namespace) -> None:
    """Answer one prompt; pictures and settings are checked before the model is loaded."""
    from tilewise.inputs.media.policy import ImagePolicy
    from tilewise.inputs.media.sources import load_image

    is_demo = args.prompt is None and not args.image
    if is_demo:
        from tilewise.demo import picture_path

        args.prompt, args.image = DEMO_QUESTION, [str(picture_path())]
        print(f"picture   {args.image[0]}\nquestion  {args.prompt}", file=sys.stderr)
    _check_output(args)
    generation = _read_generation(args)
    config = EngineConfig.from_options(given_flags(args, ENGINE_HELP))
    policy = ImagePolicy(allowed_media_hosts=getattr(args, "allowed_media_hosts", ()))
    images = [load_image(source, policy) for source in args.image]
    prompt = (args.prompt, images) if images else args.prompt
    started_at = time.perf_counter()
    with _load(args, config) as pipe:
        load_s = time.perf_counter() - started_at
        if args.stream:
            responses = _print_stream(pipe, prompt, generation)
        else:
            answered: Any = pipe(prompt, generation)
            responses = cast(list[Response], answered if isinstance(answered, list) else [answered])
        answer_s = time.perf_counter() - started_at - load_s
    if args.json:
        # Of a banned token the logprob, which JSON has no number for, becomes null.
        print(msgspec.json.encode({"answers": responses, "load_s": load_s, "answer_s": answer_s}).decode())
        return
    if not args.stream:
        for response in responses:
            print(response if is_demo else response.text.translate(UNPRINTABLE), flush=True)
    num_new = sum(response.generate_token_len for response in responses)
    ends = ", ".join(str(response.finish_reason) for response in responses)
    print(
        f"{responses[0].input_token_len} tokens in, {num_new} out ({ends}); "
        f"loaded in {load_s:.1f} s, answered in {answer_s:.1f} s",
        file=sys.stderr,
    )


def _load(args: argparse.Namespace, config: EngineConfig) -> "Pipeline":
    from tilewise.offline.pipeline import pipeline

    create = args.create_pipeline or pipeline
    template = ChatTemplateConfig(model_name=args.chat_template)
    return create(args.model, None, config, template, args.log_level, **given_flags(args, PICTURE_HELP))


def _check_output(args: argparse.Namespace) -> None:
    if args.prompt is None:
        raise InputError("A picture came without a question; add --prompt TEXT.", param="prompt")
    if args.stream and args.json:
        raise InputError("--stream and --json exclude each other; give one.")
    if args.stream and getattr(args, "n", 1) > 1:
        raise InputError("--stream shows one answer; leave --n out, or --stream.", param="n")
    if getattr(args, "logprobs", None) is not None and not args.json:
        raise InputError("--logprobs shows in JSON only; add --json.", param="logprobs")


def _read_generation(args: argparse.Namespace) -> GenerationConfig:
    given = given_flags(args, GENERATION_HELP)
    idle = [name for name in _SAMPLING_ONLY if name in given]
    if idle and not given.get("do_sample"):
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise InputError(f"{flags}: has no effect without sampling; add --do-sample, or leave it out.", param=idle[0])
    return GenerationConfig(**given)


def _print_stream(pipe: "Pipeline", prompt: Any, generation: GenerationConfig) -> list[Response]:
    """Print the pieces as they come; the last one holds the final counts."""
    last: list[Response] = []
    for piece in pipe.stream_infer(prompt, generation):
        print(piece.text.translate(UNPRINTABLE), end="", flush=True)
        last = [piece]
    print()
    return last


def run_chat(args: argparse.Namespace) -> None:
    """Talk until the user leaves; settings are checked before the model is loaded."""
    if cast(Any, sys.stdin) is None:
        raise InputError("stdin is closed; chat reads its questions there.")
    generation = _read_generation(args)
    config = EngineConfig.from_options(given_flags(args, ENGINE_HELP))

    from tilewise.cli.chat import Chat
    from tilewise.cli.remote import RemotePipeline

    if _is_remote(args):
        from tilewise.client import APIClient

        Chat(RemotePipeline(APIClient(args.server, args.api_key)), generation).run()
        return
    with _load(args, config) as pipe:
        Chat(pipe, generation).run()


def run_serve_api_server(args: argparse.Namespace) -> None:
    """Serve the HTTP API until told to end."""
    from tilewise.serving.config import ServerConfig
    from tilewise.serving.server import run_server

    server = ServerConfig(**given_flags(args, SERVER_HELP))
    config = EngineConfig.from_options(given_flags(args, ENGINE_HELP))
    template = ChatTemplateConfig(model_name=args.chat_template)
    run_server(args.model, config, server, template, args.log_level, **given_flags(args, PICTURE_HELP))


def run_serve_gradio(args: argparse.Namespace) -> None:
    """Serve the chat page until told to end."""
    try:
        from tilewise.page.server import run_page
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'tilewise[ui]'.") from None
    _is_remote(args)
    launch = {
        "server_name": args.server_name,
        "server_port": args.server_port,
        "is_shared": args.share,
        "allowed_hosts": [name.lower() for name in args.allowed_hosts],
    }
    server_flags = to_argv({**_model_flags(args), "log_level": args.log_level})
    run_page(args.server, args.api_key, launch, args.model, server_flags)


def _is_remote(args: argparse.Namespace) -> bool:
    """Whether a server has the model; its own settings are then refused here."""
    given = [*["MODEL"] * (args.model is not None), *to_argv(_model_flags(args))]
    if args.server is not None and given:
        raise ConfigError(f"{given[0]:.100} is the server's own to choose; leave it out, or --server.")
    return args.server is not None


def _model_flags(args: argparse.Namespace) -> dict[str, Any]:
    template = {} if args.chat_template is None else {"chat_template": args.chat_template}
    return {**template, **given_flags(args, {**ENGINE_HELP, **PICTURE_HELP})}


def run_check_env(args: argparse.Namespace) -> None:
    """Show what an issue report needs: versions, devices, memory."""
    rows = [("tilewise", __version__), ("python", f"{platform.python_version()}, {platform.platform()}")]
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            rows.append((name, metadata.version(name)))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows.append(("host", f"{os.cpu_count()} cores, {memory_bytes / _GIB:.1f} GiB memory"))
    rows += _find_devices()
    _print_table(("what", "found"), rows)


def _find_devices() -> list[tuple[str, str]]:
    import torch

    cuda: Any = torch.cuda
    rows = [("torch device", "cuda" if cuda.is_available() else "cpu")]
    for index in range(cuda.device_count()):
        properties = cuda.get_device_properties(index)
        free_bytes, total_bytes = cuda.mem_get_info(index)
        memory = f"{free_bytes / _GIB:.1f} of {total_bytes / _GIB:.1f} GiB free"
        rows.append((f"cuda:{index}", f"{properties.name}, {properties.major}.{properties.minor}, {memory}"))
    return rows


def run_list(args: argparse.Namespace) -> None:
    """Show the family's checkpoints, what each takes and how it was tested, and the prompt profiles."""
    from tilewise.cli.family import print_family

    print_family()


def run_download(args: argparse.Namespace) -> None:
    """Fetch a model and print its folder."""
    from tilewise.checkpoint.hub import find_model

    print(find_model(args.model, revision=args.revision, download_dir=args.download_dir))


def _print_table(headings: tuple[str, str], rows: "tuple[tuple[str, str], ...] | list[tuple[str, str]]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
