"""`tilewise chat` as a person meets it: a process on a terminal of its own, keys in, text out."""

import os
import platform
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S, run_command, start_process
from tilewise.demo import picture_path

pytest.importorskip("termios", reason="this platform has no pseudo-terminals")

SOURCE = Path(__file__).resolve().parents[2] / "src"
CTRL_C, CTRL_D = b"\x03", b"\x04"
# Forking a process with threads is unsafe, so the child itself takes the terminal and then turns into the command.
ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "tilewise", *sys.argv[1:]])
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "TERM": "dumb"}
# The calls in which `input()` waits for a key, and their first argument where that is the keyboard: `read` of file 0,
# and, with readline, `select` or `pselect6` of the files below 1.
READING = {
    "x86_64": ("0 0x0", "23 0x1", "270 0x1"),
    "aarch64": ("63 0x0", "72 0x1"),
}


class Person:
    """Types at `tilewise chat`, and waits for what it shows."""

    def __init__(self, process: "subprocess.Popen[bytes]", keyboard: int) -> None:
        self.process, self.keyboard = process, keyboard
        self.seen = b""

    def press(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def wait_for_prompt(self, prompt: str = "> ") -> None:
        """Until the prompt is shown and the program reads; what is pressed before, readline does not get."""
        self.wait_for(prompt)
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_reading():
            assert time.monotonic() < deadline, "the program does not read what is typed"
            time.sleep(0.01)

    def _is_reading(self) -> bool:
        call = Path(f"/proc/{self.process.pid}/syscall").read_text()
        return " ".join(call.split()[:2]) in READING[platform.machine()]

    def say(self, line: str) -> None:
        self.press(line.encode() + b"\n")

    def wait_for(self, text: str) -> str:
        """Everything shown up to and with `text`; what comes after it is left for the next wait."""
        deadline = time.monotonic() + PATIENCE_S
        while text.encode() not in self.seen:
            is_readable, _, _ = select.select([self.keyboard], [], [], max(0.0, deadline - time.monotonic()))
            assert is_readable, f"{text!r} did not come, but {self.seen!r}"
            try:
                self.seen += os.read(self.keyboard, 4096)
            except OSError:  # how Linux says that the other side is closed
                pytest.fail(f"it ended without {text!r}: {self.seen!r}")
        before, found, self.seen = self.seen.partition(text.encode())
        return (before + found).decode()

    def wait_for_text(self) -> None:
        """Read until something is there that can be seen."""
        while not (text := re.sub(rb"\x1b\[\?[0-9]+[hl]", b"", self.seen).strip()) or b"\x1b" in text:
            is_readable, _, _ = select.select([self.keyboard], [], [], PATIENCE_S)
            assert is_readable, f"nothing came, but {self.seen!r}"
            self.seen += os.read(self.keyboard, 4096)


@pytest.fixture
def person() -> Iterator[Person]:
    if platform.machine() not in READING or not os.access("/proc/self/syscall", os.R_OK):
        pytest.skip("whether a program reads is seen in /proc/PID/syscall, which this system lacks")
    command = [sys.executable, "-c", ON_TERMINAL, "chat", "--max-new-tokens", "30000", "--ignore-eos"]
    keyboard, terminal = os.openpty()
    with (
        os.fdopen(keyboard, "rb", buffering=0),
        start_process(command, stdin=terminal, stdout=terminal, stderr=terminal, env=ENVIRONMENT) as process,
    ):
        os.close(terminal)
        yield Person(process, keyboard)


def test_ctrl_c_stops_an_answer_about_a_picture_and_the_conversation_goes_on_to_ctrl_d(person: Person) -> None:
    person.wait_for_prompt()
    person.say(f"/image {shlex.quote(str(picture_path()))}")
    person.wait_for("600 x 400")
    person.wait_for_prompt("[1 picture] > ")
    for question in ("请描述图中内容", "and what else?"):
        person.say(question)
        person.wait_for("\n")
        person.wait_for_text()
        person.press(CTRL_C)
        person.wait_for("(stopped)")
        person.wait_for_prompt()
    person.press(CTRL_D)
    assert person.process.wait(PATIENCE_S) == 0


def test_a_line_is_edited_and_recalled_where_readline_is(person: Person) -> None:
    pytest.importorskip("readline")
    person.wait_for_prompt()
    person.say("/unda\x7fo")
    person.wait_for("tilewise: There is nothing to take back.")
    person.wait_for_prompt()
    person.press(b"\x10\n")  # the line before
    person.wait_for("tilewise: There is nothing to take back.")
    person.wait_for_prompt()
    person.press(CTRL_D)
    assert person.process.wait(PATIENCE_S) == 0


def test_ctrl_c_twice_at_the_prompt_leaves_with_130(person: Person) -> None:
    person.wait_for_prompt()
    person.press(CTRL_C)
    person.wait_for("Ctrl-C once more leaves")
    person.wait_for_prompt()
    person.press(CTRL_C)
    person.wait_for("tilewise: interrupted")
    assert person.process.wait(PATIENCE_S) == 130


def test_questions_are_piped_in_line_by_line() -> None:
    lines = f"/image {shlex.quote(str(picture_path()))}\n请描述图中内容\n/image none.png\nand\\\nthen?"
    command = [sys.executable, "-m", "tilewise", "chat", "--max-new-tokens", "2"]
    done = run_command(command, input=lines, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2, done.stdout
    assert all(done.stdout.splitlines()), done.stdout
    assert done.stderr == "tilewise: There is no picture at 'none.png'; check the path.\n"


def test_a_program_that_is_piped_to_ends_at_the_first_ctrl_c() -> None:
    with start_process(
        [sys.executable, "-m", "tilewise", "chat", "--max-new-tokens", "30000", "--ignore-eos"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "tilewise: interrupted\n"
        assert process.wait(PATIENCE_S) == 130
