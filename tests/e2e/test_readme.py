"""What the READMEs show works as it is pasted."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.processes import run_command
from tilewise.cli import commands
from tilewise.cli import main as cli


def read_blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_example_runs_as_pasted(repository: Path, tmp_path: Path, name: str) -> None:
    (script,) = read_blocks(repository / name, "python")
    env = {**os.environ, "PYTHONPATH": str(repository / "src"), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
    done = run_command([sys.executable, "-c", script], env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Response(text='")


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_every_command_that_is_shown_exists_and_every_one_that_exists_is_shown(repository: Path, name: str) -> None:
    lines = [
        line.partition("#")[0].split() for block in read_blocks(repository / name, "bash") for line in block.split("\n")
    ]
    parser = cli.create_parser()
    parsed = [parser.parse_args(words[1:]) for words in lines if words[:1] == ["tilewise"]]
    shown = {args.command + (f"_{args.front}" if args.command == "serve" else "") for args in parsed}
    assert shown == {word.removeprefix("run_") for word in dir(commands) if word.startswith("run_")}
