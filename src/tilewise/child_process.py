"""How this package starts Python processes of its own: the command, and what of the environment they get."""

import os
import sys
from pathlib import Path

_KEPT_VARIABLES = frozenset(
    ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
)


def child_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package.

    -P: the folder that the user happens to be in may hold files of our dependencies' names.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(*, with_secrets: bool = False) -> dict[str, str]:
    """What Python and its libraries need to start and to find this very package: no token or key of the parent's.

    `with_secrets` keeps them, for a child that does what this process would.
    """
    kept = dict(os.environ)
    if not with_secrets:
        kept = {name: value for name, value in kept.items() if name in _KEPT_VARIABLES or name.startswith("LC_")}
    package_root = Path(__file__).parents[1]
    if package_root.name not in ("site-packages", "dist-packages"):  # NOTE: on PYTHONPATH these would shadow the stdlib
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package_root), kept.get("PYTHONPATH"))))
    return kept
