"""Tests reach our code through its public names: what they need to replace goes in as an argument.

A patch may stand for the outside world (sys.stdin, torch.cuda, subprocess), never for a part of ours: then a module
can be rewritten without a test that knows its insides. What is allowed all the same is listed with its reason.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
OURS = {"tilewise", "tests", "benchmarks"}
# (file, what is touched): why no public name serves.
DAMAGE = "check_integrity has to notice damage, and no public call can do any"
ALLOWED = {
    ("cache/test_blocks.py", "pool._free"): DAMAGE,
    ("cache/test_blocks.py", "pool._idle"): DAMAGE,
    ("cache/test_prefix.py", "cache._block_of"): DAMAGE,
    ("oracle/test_on_gpu.py", "monkeypatch.setattr(owner, ...)"): "a kernel that ran on a GPU leaves no other trace",
}
Offence = tuple[int, str]


def name_packages(tree: ast.AST) -> dict[str, str]:
    """The package that each imported name comes from."""
    packages: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                packages[alias.asname or alias.name.partition(".")[0]] = alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages |= {alias.asname or alias.name: node.module.partition(".")[0] for alias in node.names}
    return packages


def find_root(node: ast.expr) -> str | None:
    """The name that an expression begins with: a of a.b, a.b[0] and a(1).b."""
    while not isinstance(node, ast.Name):
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return None
    return node.id


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_patch(call: ast.Call) -> bool:
    """`monkeypatch.setattr` by whatever name, `delattr`, and everything of `unittest.mock.patch`."""
    written = ast.unparse(call.func)
    by_fixture = isinstance(call.func, ast.Attribute) and call.func.attr in ("setattr", "delattr")
    return by_fixture or "patch" in written.split(".")


def find_offences(source: str) -> Iterator[Offence]:
    """Yield what a test file patches or reads of ours: the line, and what is touched."""
    tree = ast.parse(source)
    packages = name_packages(tree)

    def is_outside(node: ast.expr) -> bool:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value.partition(".")[0] not in OURS
        return packages.get(find_root(node) or "", "tests") not in OURS

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            is_inherited = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if not is_own and not is_inherited and not is_outside(node):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and is_patch(node) and node.args and not is_outside(node.args[0]):
            yield node.lineno, f"{ast.unparse(node.func)}({ast.unparse(node.args[0])}, ...)"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr") and len(node.args) > 1:
            named = node.args[1]
            if isinstance(named, ast.Constant) and is_private(str(named.value)) and not is_outside(node.args[0]):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                root = find_root(target)
                if isinstance(target, ast.Attribute) and root and packages.get(root) in OURS:
                    yield node.lineno, f"{ast.unparse(target)} = ..."


def test_tests_patch_and_read_nothing_private_of_ours() -> None:
    found: list[str] = []
    met: set[tuple[str, str]] = set()
    for path in sorted(TESTS.rglob("*.py")):
        file = path.relative_to(TESTS).as_posix()
        for line, touched in find_offences(path.read_text(encoding="utf-8")):
            met.add((file, touched))
            if (file, touched) not in ALLOWED:
                found.append(f"tests/{file}:{line}: {touched}; hand it in as an argument, or give it a public name")
    assert not found, "\n" + "\n".join(found)
    assert met >= ALLOWED.keys(), f"no longer needed: {ALLOWED.keys() - met}"


@pytest.mark.parametrize(
    "line",
    [
        "from tilewise.a import b\nmonkeypatch.setattr(b, 'c', 1)",
        "from tilewise.a import B\nmonkeypatch.setattr(B, 'method', 1)",
        "from tilewise import a\nmonkeypatch.setattr(a.subprocess, 'run', 1)",
        "import tilewise.a\nmonkeypatch.delattr(tilewise.a, 'b')",
        "monkeypatch.setattr('tilewise.a.b', 1)",
        "with monkeypatch.context() as patched:\n    patched.setattr(instance, 'method', 1)",
        "from unittest import mock\nmock.patch('tilewise.a.b')",
        "from unittest.mock import patch\nfrom tilewise.a import b\npatch.object(b, 'c')",
        "from tilewise.a import _b",
        "from tilewise import a\na._b()",
        "thing._private",
        "self.thing._private",
        "getattr(thing, '_private')",
        "from tilewise import a\na.LIMIT = 1",
    ],
)
def test_the_gate_sees_every_way_in(line: str) -> None:
    assert list(find_offences(line))


@pytest.mark.parametrize(
    "line",
    [
        "import torch\nmonkeypatch.setattr(torch.cuda, 'current_device', 1)",
        "import subprocess\nmonkeypatch.setattr(subprocess.Popen, 'wait', 1)",
        "monkeypatch.setattr('sys.stdin', 1)",
        "import os\nos._exit(1)",
        "self._own = 1",
        "super()._own()",
        "thing.__class__",
        "thing.public = 1",
    ],
)
def test_the_outside_world_and_a_tests_own_parts_are_no_offence(line: str) -> None:
    assert not list(find_offences(line))
