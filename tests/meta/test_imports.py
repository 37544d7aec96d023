"""Holds ARCHITECTURE's table of who may import whom, on the direct imports of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
BASE = ("errors", "files", "types", "config", "steps")


@dataclass(frozen=True)
class Row:
    """Modules of one kind, what of the package they may import, and what they never do.

    A name stands for the module and everything below it. `never` bans a package anywhere in the file, `lazy` allows
    it inside functions only. `inside` allows our own modules inside functions only.
    """

    modules: tuple[str, ...]
    may: tuple[str, ...]
    never: tuple[str, ...] = ()
    lazy: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


TORCH = ("torch", "triton")
LOW = (*BASE, "cache.blocks", "cache.prefix", "inputs.tiling", "engine.messages", "parallel", "kernels")
MODELS = (*LOW, "quant", "cache", "checkpoint", "inputs", "scheduler", "plan", "layers", "model")
ROWS = (
    Row(BASE, BASE, never=(*TORCH, "PIL")),
    Row(("cache.blocks", "cache.prefix"), (*BASE, "cache.blocks", "cache.prefix"), never=TORCH),
    Row(("inputs.tiling", "engine.messages"), BASE, never=TORCH),
    Row(("parallel", "kernels"), (*BASE, "parallel", "kernels"), lazy=("triton",)),
    Row(("scheduler",), (*BASE, "cache.blocks", "cache.prefix", "cache.images"), never=TORCH),
    Row(("cache.images",), (*LOW, "cache.images"), never=TORCH),
    Row(("quant",), (*LOW, "quant")),
    Row(("cache.kv",), (*LOW, "cache")),
    Row(("checkpoint.hub", "checkpoint.hf_config"), (*BASE, "checkpoint"), never=TORCH, inside=("demo",)),
    Row(("checkpoint.weights",), (*LOW, "checkpoint")),
    Row(("inputs",), (*BASE, "inputs"), never=TORCH),
    Row(("plan",), (*BASE, "checkpoint.hf_config"), never=TORCH),
    Row(("layers",), (*BASE, "quant", "parallel", "kernels", "layers")),
    Row(("model",), (*BASE, "parallel", "layers", "model")),
    Row(("runner",), (*MODELS, "runner")),
    Row(("engine.core",), (*MODELS, "runner", "engine.messages", "engine.core")),
    Row(("engine.wire",), (*BASE, "engine.messages"), never=TORCH),
    Row(("engine.client",), (*BASE, "engine.messages", "engine.wire", "inputs"), never=TORCH),
    Row(
        ("engine.process",),
        (*BASE, "engine.client", "engine.messages", "engine.wire"),
        never=TORCH,
        inside=("engine.core",),
    ),
    Row(
        ("engine.launch",),
        (*BASE, "engine.client", "engine.messages", "checkpoint"),
        lazy=TORCH,
        inside=("engine.core",),
    ),
    Row(
        ("frontends", "vl", "client", "demo", "__main__", ""),
        (*BASE, "", "frontends", "vl", "client", "demo", "engine.client", "engine.launch", "inputs", "plan"),
        lazy=TORCH,
        inside=("checkpoint", "quant"),
    ),
)
PACKAGES = {"cache", "checkpoint", "engine", "inputs"}  # their __init__ holds a docstring and nothing else


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    name: str
    is_inside: bool


def read_imports(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, is_inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, is_inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                for alias in child.names:
                    full = f"{module}.{alias.name}"
                    is_module = (SOURCE / full.replace(".", "/")).with_suffix(".py").exists()
                    is_package = (SOURCE / full.replace(".", "/")).is_dir()
                    yield Import(path, child.lineno, full if is_module or is_package else module, is_inside)
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, is_inside or is_function)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def is_below(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or (parent and name.startswith(parent + ".")) for parent in parents)


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE / "tilewise").with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".")


def find_row(name: str) -> Row | None:
    # The longest match: `cache.images` before `cache`.
    matches = [(len(parent), row) for row in ROWS for parent in row.modules if is_below(name, (parent,))]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def find_offences(row: Row, found: Import) -> str | None:
    root = found.name.partition(".")[0]
    if root == "tilewise":
        target = found.name.removeprefix("tilewise").lstrip(".")
        if is_below(target, row.may) or (found.is_inside and is_below(target, row.inside)):
            return None
        return f"may not import tilewise.{target}{' at the top' if is_below(target, row.inside) else ''}"
    if root in row.never:
        return f"may never import {root}"
    if root in row.lazy and not found.is_inside:
        return f"may import {root} inside a function only"
    return None


def source_files() -> list[Path]:
    return sorted((SOURCE / "tilewise").rglob("*.py"))


def test_every_import_points_down() -> None:
    offences: list[str] = []
    for path in source_files():
        name = module_name(path)
        row = find_row(name)
        if row is None:
            if name not in PACKAGES:
                offences.append(f"{path.relative_to(SOURCE)}: no row of the table names it; add one to {__file__}")
            continue
        for found in read_imports(path):
            if offence := find_offences(row, found):
                offences.append(f"{path.relative_to(SOURCE)}:{found.line}: {name or 'tilewise'} {offence}")
    assert not offences, "\n" + "\n".join(offences)


def test_packages_without_a_row_hold_a_docstring_only() -> None:
    for package in PACKAGES:
        tree = ast.parse((SOURCE / "tilewise" / package / "__init__.py").read_text(encoding="utf-8"))
        assert len(tree.body) == 1, f"{package}/__init__.py imports or defines something"


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("scheduler", "import torch", "never import torch"),
        ("scheduler", "from tilewise.runner.runner import Runner", "may not import tilewise.runner"),
        ("model.decoder", "from tilewise.checkpoint.weights import load_weights", "may not import tilewise.checkpoint"),
        ("engine.launch", "from tilewise.engine.core import EngineCore", "at the top"),
        ("frontends.cli", "import torch", "inside a function only"),
    ],
)
def test_an_upward_edge_is_reported(tmp_path: Path, module: str, line: str, offence: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    row = find_row(module)
    assert row is not None
    said = [find_offences(row, found) for found in read_imports(path)]
    assert any(offence in (text or "") for text in said), said


@pytest.mark.parametrize("module", ["tilewise", "tilewise.frontends.cli", "tilewise.engine.client", "tilewise.types"])
def test_a_fresh_interpreter_imports_it_without_torch(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'PIL', 'transformers', 'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)\n"
        "print(*sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}, check=True
    )
    allowed = {"PIL", "numpy"} if module == "tilewise.engine.client" else set[str]()
    assert set(done.stdout.split()) <= allowed, done.stdout
