"""Prints the lower bound of every dependency that users install as a pip constraint: `python -m tests.lower_bounds`.

torch is left out: `make test-oldest TORCH=torch==2.11.0` chooses it. The tools of development are the newest.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
EXTRAS = ("server", "ui")


def list_constraints() -> list[str]:
    """One line a dependency: name==lowest allowed version."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    entries = [*project["dependencies"], *(e for extra in EXTRAS for e in project["optional-dependencies"][extra])]
    constraints: set[str] = set()
    for requirement in map(Requirement, entries):
        lowest = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if lowest and requirement.name not in ("torch", "tilewise"):
            constraints.add(f"{requirement.name}=={lowest[0]}")
    return sorted(constraints)


if __name__ == "__main__":
    print("\n".join(list_constraints()))
