"""A virtual environment for a library that is no dependency of ours, as its users would make one."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_command

_INSTALL_S = 600.0


class Environment:
    """Python with what pip installed, in a folder of its own; it sees neither our packages nor our sources."""

    def __init__(self, folder: Path, *packages: str) -> None:
        """Install; the test is skipped where pip reaches no index at all, and fails if pip fails otherwise."""
        self._folder = folder
        self._python = folder / "environment" / "bin" / "python"
        dropped = ("PYTHON", "OPENAI_", "LANGCHAIN_", "LANGSMITH_")
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self._variables |= {"HOME": str(folder), "NO_PROXY": "127.0.0.1"}
        run_command([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        command = [str(self._python), "-m", "pip", "install", "--quiet", *packages]
        done = run_command(command, timeout_s=_INSTALL_S)
        if done.returncode and "(from versions: none)" in done.stderr:
            pytest.skip(f"pip finds no index that has {' and '.join(packages)}")
        assert done.returncode == 0, done.stderr

    def run(self, script: str, **facts: Any) -> Any:
        """Run a script that reads `facts` as JSON from its input; give the JSON that it prints."""
        path = self._folder / "script.py"
        path.write_text(script, "utf-8")
        command = [str(self._python), str(path)]
        done = run_command(command, input=json.dumps(facts), env=self._variables, cwd=self._folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)
