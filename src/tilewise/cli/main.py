"""The `tilewise` command: its grammar, and how it fails.

Bad input ends in one line on stderr that says what to do, and status 2; Ctrl-C in status 130. Commands live in
`commands` and import what they need when they run, so that `--help` is instant.
"""

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from tilewise import __version__
from tilewise.cli.flags import ENGINE_HELP, GENERATION_HELP, PICTURE_HELP, SERVER_HELP, add_flags
from tilewise.config import EngineConfig
from tilewise.errors import EngineError, TilewiseError
from tilewise.types import GenerationConfig

if TYPE_CHECKING:
    from tilewise.offline.pipeline import Pipeline

# A conversation goes on from one answer, and shows its text alone.
_CHAT_HELP = {name: text for name, text in GENERATION_HELP.items() if name not in ("n", "logprobs")}
# A plan is for a GPU that need not be here, and looks at no weights.
_PLAN_HELP = {name: text for name, text in ENGINE_HELP.items() if name not in ("device", "load_format")}
_MODEL_HELP = "a folder, a symbolic link to one, or a hub id (org/name); default: the embedded model"


class _Parser(argparse.ArgumentParser):
    """One line in place of argparse's usage and message, with the nearest flag; no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, *given: Any, **more: Any) -> Any:
        found, unknown = super().parse_known_args(*given, **more)
        if unknown:  # told by the parser of the command itself, which knows the flags that may have been meant
            near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            self.exit(2, f"{self.prog}: unknown argument {unknown[0]!r:.100}.{hint} See: {self.prog} --help\n")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See: {self.prog} --help\n")


def create_parser() -> argparse.ArgumentParser:
    """The grammar of every command."""
    parser = _Parser(prog="tilewise", description="Ask InternVL about pictures.")
    parser.add_argument("--version", action="version", version=f"tilewise {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    generate = commands.add_parser(
        "generate",
        help="answer one prompt, with pictures",
        usage="tilewise generate [MODEL] [--image PATH ...] [--prompt TEXT] [FLAGS ...]",
        description="Answer one prompt. With neither --prompt nor --image, the bundled picture is described.",
    )
    generate.add_argument("--image", metavar="PATH", action="append", default=[], help="a file or URL; may be repeated")
    generate.add_argument("--prompt", metavar="TEXT", help="what to ask; <IMAGE_TOKEN> may mark the pictures' places")
    generate.add_argument("--stream", action="store_true", help="print the answer as it grows")
    generate.add_argument("--json", action="store_true", help="print one JSON object")
    _add_model_flags(generate, GENERATION_HELP)
    chat = commands.add_parser(
        "chat",
        help="talk in the terminal, with pictures",
        usage="tilewise chat [MODEL] [FLAGS ...]",
        description="Talk about pictures, question by question; /help there lists the commands. Questions may also be "
        "piped in, one a line.",
    )
    _add_remote_flags(chat)
    _add_model_flags(chat, _CHAT_HELP)
    plan = commands.add_parser(
        "plan",
        help="show what a model takes on a GPU, without loading it",
        usage="tilewise plan [MODEL] --gpu SIZE [FLAGS ...]",
        description="Show what a model takes on a GPU and which settings make it fit. Nothing is loaded, and of a hub "
        "id no weights are fetched; no GPU is needed. The status is 2 where nothing makes it fit.",
    )
    plan.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL_HELP)
    plan.add_argument("--gpu", metavar="SIZE", help="memory of the GPU: 80GiB, 24GiB, 81559MiB")
    plan.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")
    add_flags(plan, "engine", EngineConfig, _PLAN_HELP)
    _add_serve(commands.add_parser("serve", help="serve over HTTP"))
    commands.add_parser("check_env", help="show versions, devices and memory")
    commands.add_parser("list", help="show the family's checkpoints, sizes and tests, and the prompt profiles")
    download = commands.add_parser("download", help="fetch a model and print its folder")
    download.add_argument("model", metavar="MODEL", help="a hub id (org/name)")
    download.add_argument("--download-dir", metavar="FOLDER", help=ENGINE_HELP["download_dir"])
    download.add_argument("--revision", metavar="TEXT", help=ENGINE_HELP["revision"])
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    from tilewise.serving.config import ServerConfig

    fronts = serve.add_subparsers(dest="front", metavar="FRONT", title="front ends")
    api_server = fronts.add_parser(
        "api_server",
        help="the API that OpenAI's clients speak",
        usage="tilewise serve api_server [MODEL] [FLAGS ...]",
        description="Answer OpenAI's clients at http://127.0.0.1:23333/v1. SIGTERM lets running answers finish.",
    )
    add_flags(api_server, "server", ServerConfig, SERVER_HELP)
    _add_model_flags(api_server, {}, log_level="INFO")
    gradio = fronts.add_parser(
        "gradio",
        help="the chat page",
        usage="tilewise serve gradio [MODEL | --server URL] [FLAGS ...]",
        description="Open the chat page at http://127.0.0.1:6006. It starts an API server of its own for MODEL, or "
        "talks to the one at --server.",
    )
    gradio.add_argument("--server-name", metavar="TEXT", default="127.0.0.1", help="address to listen at")
    gradio.add_argument("--server-port", metavar="N", type=int, default=6006, help="port to listen at (default: 6006)")
    text = "name of the page behind a proxy on this machine; may be repeated"
    gradio.add_argument("--allowed-hosts", metavar="NAME", action="append", default=[], help=text)
    gradio.add_argument("--share", action="store_true", help="also open a public link through gradio's servers")
    _add_remote_flags(gradio)
    _add_model_flags(gradio, {})


def _add_remote_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--server", metavar="URL", help="talk to this API server, and load no model")
    text = "its key. Others may see it in the process list: better the variable TILEWISE_API_KEY"
    command.add_argument("--api-key", metavar="KEY", default=os.environ.get("TILEWISE_API_KEY"), help=text)


def _add_model_flags(
    command: argparse.ArgumentParser, generation_help: dict[str, str], log_level: str = "WARNING"
) -> None:
    """What every command takes that loads a model and answers."""
    command.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL_HELP)
    text = "prompt profile (see: tilewise list), or a file of one"
    command.add_argument("--chat-template", metavar="NAME|FILE.json", help=text)
    command.add_argument("--log-level", metavar="LEVEL", default=log_level, help="DEBUG, INFO, WARNING or ERROR")
    add_flags(command, "answer", GenerationConfig, generation_help)
    add_flags(command, "engine", EngineConfig, ENGINE_HELP)
    pictures = command.add_argument_group("pictures")
    for name, text in PICTURE_HELP.items():
        is_host = name == "allowed_media_hosts"
        kind: dict[str, Any] = {"action": "append", "metavar": "HOST"} if is_host else {"type": int, "metavar": "N"}
        pictures.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=text, **kind)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = create_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.error("a command is missing; try: tilewise generate")
    if args.command == "serve":
        if args.front is None:
            parser.error("serve needs a front end; try: tilewise serve api_server")
        args.command = f"serve_{args.front}"
    return args


def main(argv: Sequence[str] | None = None, create_pipeline: "Callable[..., Pipeline] | None" = None) -> int:
    """Run one command and return the exit status; a usage error exits by itself.

    A caller may load models in its own way: `create_pipeline` takes the arguments of `tilewise.pipeline`.
    """
    if cast(Any, sys.stdout) is None:
        print("tilewise: stdout is closed; leave it open for the answer.", file=sys.stderr)
        return 1
    with contextlib.suppress(AttributeError):  # what stands in for stdout, in a notebook say, may lack it
        # Characters that the terminal's encoding lacks become question marks.
        cast(Any, sys.stdout).reconfigure(errors="replace")
    try:
        try:
            args = _parse(argv)
            args.create_pipeline = create_pipeline
            from tilewise.cli import commands

            getattr(commands, f"run_{args.command}")(args)
        finally:
            sys.stdout.flush()
    except TilewiseError as error:
        print(f"tilewise: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, EngineError) else 2
    except KeyboardInterrupt:
        print("tilewise: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None:  # not the output's
            raise
        if not isinstance(error, BrokenPipeError):  # then whoever read our output left, and knows
            print(f"tilewise: the output cannot be written: {error.strerror}", file=sys.stderr)
        # The interpreter must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
