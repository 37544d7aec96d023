"""`tilewise chat`: a conversation in the terminal, or over a pipe.

Owns what a person types: lines, commands, pictures that wait for their question, and what Ctrl-C means. Answers go
to stdout, everything else to stderr. No model is loaded and no flag is read here. On a terminal Ctrl-C ends what is
being done, an answer mostly, and never the conversation; without one it ends the program, as it would any other.
"""

import os
import shlex
import sys
from contextlib import closing, suppress
from typing import Any, cast

from PIL.Image import Image

from tilewise import __version__
from tilewise.cli.remote import RemotePipeline
from tilewise.errors import EngineError, InputError, TilewiseError
from tilewise.inputs.media.policy import ImagePolicy
from tilewise.inputs.media.sources import load_image
from tilewise.offline.pipeline import Pipeline
from tilewise.offline.session import Session
from tilewise.terminal import UNPRINTABLE
from tilewise.types import FinishReason, GenerationConfig

HELP = """\
/image PATH ...  attach pictures to the next question: files or URLs, quoted where a name has blanks
/undo            take back the pictures that wait for a question, or else the last turn
/new, /clear     start over
/help            show this
/exit            leave, as Ctrl-D does; Ctrl-C stops an answer
A backslash at the end of a line continues it on the next; a question that begins with a slash takes two."""


class Chat:
    """One conversation with `pipe`, over this process's stdin and stdout."""

    def __init__(self, pipe: Pipeline | RemotePipeline, generation: GenerationConfig) -> None:
        """Start with no turns; nothing is read yet."""
        self._pipe = pipe
        is_here = isinstance(pipe, Pipeline)
        self._policy = pipe.builder.policy if is_here else ImagePolicy()
        self._is_alive = pipe.engine.client.is_alive if is_here else pipe.client.health
        self._generation = generation
        self._session = Session()
        self._images: list[Image] = []
        self._is_terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Answer until the input ends or the user leaves.

        Raises:
            KeyboardInterrupt: Ctrl-C twice in a row at the prompt, or once where stdin is no terminal.
            EngineError: the engine is gone.
        """
        self._set_up()
        was_interrupted = False
        while True:
            try:
                entry = self._read()
            except KeyboardInterrupt:
                if was_interrupted or not self._is_terminal:
                    raise
                was_interrupted = True
                self._note("\nCtrl-C once more leaves, as do /exit and Ctrl-D.")
                continue
            was_interrupted = False
            if entry is None or entry == "/exit":
                return
            self._handle(entry)

    def _set_up(self) -> None:
        with suppress(AttributeError):  # what stands in for stdin, in a notebook say, may lack it
            # Bytes that are not UTF-8 must not end the conversation.
            cast(Any, sys.stdin).reconfigure(errors="replace")
        if self._is_terminal:
            with suppress(ImportError):  # where it exists, importing it gives input() editing and history
                import readline

                readline.set_completer_delims(" \t\n'\"")
                readline.parse_and_bind("tab: complete")
        self._note(f"Tilewise {__version__}. /help lists the commands, /exit leaves.")

    def _read(self) -> str | None:
        """One entry: a line, and those after it while a backslash ends them. None at the end of the input."""
        num = len(self._images)
        prompt = f"[{num} picture{'s' * (num > 1)}] > " if num else "> "
        lines: list[str] = []
        while True:
            try:
                line = input(prompt if self._is_terminal else "")
            except EOFError:
                self._note("")
                return "\n".join(lines).strip() if lines else None
            if not line.endswith("\\"):
                return "\n".join((*lines, line)).strip()
            lines.append(line[:-1])
            prompt = ". "

    def _handle(self, entry: str) -> None:
        try:
            if entry.startswith("/") and not entry.startswith("//"):
                self._command(*entry.split(None, 1))
            elif entry:
                self._ask(entry.removeprefix("/") if entry.startswith("//") else entry)
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            self._note("(stopped)")
        except TilewiseError as error:
            print(f"tilewise: {' '.join(str(error).split())}", file=sys.stderr)
            if isinstance(error, EngineError) and not self._is_alive():
                raise

    def _ask(self, question: str) -> None:
        """Print the answer as it grows; pictures wait on unless the question became a turn."""
        prompt = (question, list(self._images)) if self._images else question
        num_turns = len(self._session.history)
        finish_reason, is_open_line = None, False
        try:
            with closing(self._pipe.stream_chat(prompt, self._session, self._generation)) as pieces:
                for piece in pieces:
                    finish_reason = piece.finish_reason
                    if text := piece.text.translate(UNPRINTABLE):
                        is_open_line = True
                        print(text, end="", flush=True)
            is_open_line = True  # an empty answer is a line too
        finally:
            if is_open_line:
                print(flush=True)
            if len(self._session.history) > num_turns:
                self._images.clear()
        if finish_reason == FinishReason.LENGTH:
            self._note("(cut off: --max-new-tokens, or the session's length, allows no more)")

    def _command(self, name: str, rest: str = "") -> None:
        if name == "/image":
            self._attach(rest)
        elif name not in ("/new", "/clear", "/undo", "/help", "/exit"):
            text = f"There is no command {name!r:.80}; /help lists them. A question that begins with a slash takes two."
            raise InputError(text)
        elif rest:
            raise InputError(f"{name} takes nothing after it, got {rest!r:.80}.")
        elif name == "/help":
            print(HELP, flush=True)
        elif name == "/undo":
            self._undo()
        else:
            self._images.clear()
            self._session.close()
            self._note("A new conversation.")

    def _attach(self, rest: str) -> None:
        """Load pictures now, so that a wrong path is told at once and later turns fetch and open nothing again."""
        try:
            sources = [os.path.expanduser(source) for source in shlex.split(rest)]
        except ValueError:
            raise InputError("A quotation mark is not closed; put one on both sides of a name.") from None
        if not sources:
            raise InputError("/image needs a path or URL, or several.")
        images = [load_image(source, self._policy) for source in sources]
        self._images += images
        for source, image in zip(sources, images, strict=True):
            self._note(f"{source:.200}: {image.width} x {image.height}")

    def _undo(self) -> None:
        if self._images:
            self._images.clear()
            self._note("The pictures are taken back.")
        elif self._session.history:
            # Every turn here is one message of the user's and one answer.
            self._session.messages = self._session.messages[:-2]
            self._session.history.pop()
            self._session.response = None
            self._note(f"The last turn is taken back; {len(self._session.history)} left.")
        else:
            raise InputError("There is nothing to take back.")

    def _note(self, text: str) -> None:
        """Tell a person what a program that reads our output has no use for."""
        if self._is_terminal:
            print(text, file=sys.stderr)
