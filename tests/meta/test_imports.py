"""Holds ARCHITECTURE's ranks on the direct imports of every module: imports point down, and torch stays where it is.

A room may import every room of a lower rank, itself, and what its row allows beside those.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import run_command

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Row:
    """One or several rooms of a rank; a name stands for the module and everything below it, the longest name counts.

    Attributes:
        beside: Rooms of the same rank that may be imported too.
        only: If given, the rooms that may be imported at all, beside the room itself.
        inside: Rooms of any rank that may be imported inside functions.
        has_torch: Torch and Triton may be imported when the module is; elsewhere inside functions, or never.
        never: Packages that appear nowhere in the file, in functions neither.
    """

    rank: int
    rooms: tuple[str, ...]
    beside: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    inside: tuple[str, ...] = ()
    has_torch: bool = False
    never: tuple[str, ...] = ()


TORCH = ("torch", "triton")
EVERYTHING = "*"
GROUND = ("errors", "files", "config", "types", "child_process", "terminal", "demo", "threads", "room", "catalogue")
TEXT_AND_MEDIA_MAY = (*GROUND, "inputs.conversation")
TRANSPORT = (
    *("gateway", "errors", "body", "body_memory", "events", "hosts"),
    *("connections", "places", "request_stream", "framing", "chunks", "half_close", "linger"),
)
ROWS = (
    Row(0, GROUND, beside=GROUND, never=(*TORCH, "PIL")),
    Row(1, ("kernels", "parallel"), beside=("kernels", "parallel"), has_torch=True),
    Row(1, ("cache.blocks", "cache.prefix", "cache.tiles"), beside=("cache.blocks", "cache.prefix"), never=TORCH),
    Row(1, ("engine.messages",), only=GROUND, never=TORCH),
    Row(2, ("inputs.conversation",), only=GROUND, never=TORCH),
    Row(2, ("inputs.text",), only=TEXT_AND_MEDIA_MAY, never=TORCH),
    Row(2, ("inputs.media",), only=TEXT_AND_MEDIA_MAY, never=TORCH),
    Row(2, ("inputs.request_builder",), only=(*GROUND, "inputs"), never=TORCH),
    Row(2, ("scheduling",), never=TORCH),
    Row(1, ("checkpoint.json_file", "checkpoint.shards"), beside=("checkpoint.json_file",), never=TORCH),
    Row(2, ("checkpoint.hub", "checkpoint.hf_config"), beside=("checkpoint.hf_config",), never=TORCH),
    Row(2, ("plan",), never=TORCH),
    Row(3, ("quant",), has_torch=True),
    Row(3, ("layers",), beside=("quant",), has_torch=True),
    Row(3, ("model",), beside=("layers", "quant"), has_torch=True),
    Row(3, ("cache.tensors", "checkpoint.weights"), has_torch=True),
    Row(3, ("vl",), only=("inputs.media",), never=TORCH),
    Row(4, ("runner",), has_torch=True),
    Row(4, ("engine.core", "engine.preparations"), beside=("runner", "engine.preparations"), has_torch=True),
    Row(5, ("engine.client",), never=TORCH),
    Row(5, ("engine.wire",), only=(*GROUND, "engine.messages"), never=TORCH),
    Row(5, ("engine.in_process",), beside=("engine.client",), never=TORCH),
    Row(5, ("engine.process_client",), beside=("engine.client", "engine.wire"), never=TORCH),
    Row(5, ("engine.process",), beside=("engine.client", "engine.wire"), never=TORCH),
    Row(5, ("engine.launch",), beside=("engine.client", "engine.in_process", "engine.process_client"), never=TORCH),
    Row(6, ("answers",), never=TORCH),
    Row(6, ("offline",), beside=("answers",), never=TORCH),
    Row(6, ("serving",), beside=("answers",), never=TORCH),
    # Transport: of the package it knows errors, and of itself nothing that knows an engine.
    Row(
        6,
        tuple(f"serving.http.{name}" for name in TRANSPORT),
        only=(*GROUND, *(f"serving.http.{name}" for name in TRANSPORT)),
        never=TORCH,
    ),
    Row(7, ("client",), only=("errors", "files", "vl"), never=TORCH),
    Row(
        7,
        ("page",),
        only=(*GROUND, "", "client", "inputs.media", "inputs.text.boxes", "serving.http.hosts"),
        never=TORCH,
    ),
    Row(7, ("page.child",), only=GROUND, inside=("cli",), never=TORCH),
    # What `tilewise --help` imports is of rank 0; the rest comes with the command that needs it.
    Row(8, ("cli",), only=(*GROUND, ""), inside=(EVERYTHING,)),
    # What commands import inside functions.
    Row(8, ("cli.chat", "cli.remote", "cli.plan", "cli.family"), beside=("cli.remote", "cli.flags"), never=TORCH),
    Row(8, ("__main__",), beside=("cli",)),
    Row(8, ("",), inside=(EVERYTHING,), never=TORCH),
)
# Their __init__ names what the room offers; of every other room it is a docstring alone.
WITH_NAMES = {"config", "types", "kernels", "quant", "demo", "checkpoint.hf_config", "model.families", ""}


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
    """Whether `name` is one of `parents` or inside one; the empty parent is the package's own __init__ alone."""
    return any(name == parent or (parent and name.startswith(parent + ".")) for parent in parents)


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE / "tilewise").with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".")


def find_row(name: str) -> Row | None:
    matches = [(len(room), row) for row in ROWS for room in row.rooms if is_below(name, (room,))]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def find_offence(name: str, row: Row, found: Import) -> str | None:
    package = found.name.partition(".")[0]
    if package != "tilewise":
        if package in row.never:
            return f"may never import {package}"
        if package in TORCH and not row.has_torch and not found.is_inside:
            return f"may import {package} inside a function only"
        return None
    target = found.name.removeprefix("tilewise").lstrip(".")
    if target.startswith("kernels.") and not is_below(name, ("kernels",)):
        return f"imports tilewise.{target}; what others may use is in tilewise.kernels itself"
    own_rooms = tuple(room for room in row.rooms if is_below(name, (room,)))
    if is_below(target, own_rooms):
        return None
    if found.is_inside and (EVERYTHING in row.inside or is_below(target, row.inside)):
        return None
    target_row = find_row(target)
    if target_row is None:
        return f"imports tilewise.{target}, which no row names"
    if row.only is not None and not is_below(target, row.only):
        return f"may not import tilewise.{target}"
    if row.only is None and target_row.rank >= row.rank and target != "" and not is_below(target, row.beside):
        return f"is of rank {row.rank} and may not import tilewise.{target}, of rank {target_row.rank}"
    if target_row.has_torch and not row.has_torch and not found.is_inside:
        return f"may import tilewise.{target}, which imports torch, inside a function only"
    return None


def source_files() -> list[Path]:
    return sorted((SOURCE / "tilewise").rglob("*.py"))


def is_docstring_alone(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def test_every_import_points_down() -> None:
    offences: list[str] = []
    for path in source_files():
        name, place = module_name(path), path.relative_to(SOURCE)
        row = find_row(name)
        if row is None:
            if path.name != "__init__.py":
                offences.append(f"{place}: no row of the table names it; add one to {Path(__file__).name}")
            continue
        for found in read_imports(path):
            if offence := find_offence(name, row, found):
                offences.append(f"{place}:{found.line}: {name or 'tilewise'} {offence}")
    assert not offences, "\n" + "\n".join(offences)


def test_a_room_says_in_three_lines_what_lives_there_and_what_must_not() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for path in source_files()
        if path.name == "__init__.py" and module_name(path) not in ("", "demo")
        if not {"Here:", "Not here:"} <= {line[: line.find(":") + 1] for line in path.read_text("utf-8").splitlines()}
    ]
    assert not silent


def test_rooms_that_name_nothing_hold_a_docstring_alone() -> None:
    initial = [path for path in source_files() if path.name == "__init__.py"]
    speaking = [module_name(path) for path in initial if not is_docstring_alone(path)]
    assert set(speaking) <= WITH_NAMES


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("scheduling.scheduler", "import torch", "never import torch"),
        ("scheduling.scheduler", "from tilewise.runner.runner import Runner", "of rank 4"),
        ("model.decoder", "from tilewise.checkpoint.weights import load_weights", "of rank 3"),
        ("inputs.text.grammar", "from tilewise.inputs.media.policy import MIB", "may not import tilewise.inputs.media"),
        ("engine.launch", "from tilewise.engine.core import EngineCore", "imports torch, inside a function only"),
        ("serving.http.events", "from tilewise.serving.async_engine import Stream", "may not import"),
        ("offline.pipeline", "from tilewise.serving.server import run_server", "of rank 6"),
        ("client", "from tilewise.types import Response", "may not import tilewise.types"),
        ("layers.mlp", "from tilewise.kernels.triton import skinny", "is in tilewise.kernels itself"),
        ("cli.main", "from tilewise.offline.pipeline import pipeline", "may not import tilewise.offline"),
        ("cli.commands", "import torch", "inside a function only"),
    ],
)
def test_an_upward_edge_is_reported(tmp_path: Path, module: str, line: str, offence: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    row = find_row(module)
    assert row is not None
    said = [find_offence(module, row, found) for found in read_imports(path)]
    assert any(offence in (text or "") for text in said), said


@pytest.mark.parametrize("module", ["tilewise", "tilewise.cli.main", "tilewise.client", "tilewise.engine.client"])
def test_a_fresh_interpreter_imports_it_without_torch(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'PIL', 'transformers', 'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)\n"
        "print(*sorted(heavy))"
    )
    done = run_command([sys.executable, "-c", script], env={"PYTHONPATH": str(SOURCE)}, check=True)
    allowed = {"rich"} if module == "tilewise.client" else set[str]()  # httpx looks for it
    assert set(done.stdout.split()) <= allowed, done.stdout
