"""`tilewise list`: the family's checkpoints, what each takes, and how each was tested; the prompt profiles."""

from typing import TYPE_CHECKING

from tilewise.catalogue import RELEASES, Release
from tilewise.checkpoint.hf_config import SERVED
from tilewise.config import DTYPE_BYTES
from tilewise.inputs.text.profiles import PROFILES
from tilewise.plan import count_weights

if TYPE_CHECKING:
    from rich.table import Table

_GIB = 1 << 30
_LEGEND = (
    "GiB: weights in bf16, computed from the shapes; tilewise plan MODEL --gpu SIZE adds what serving takes.",
    "tested: shapes: its config.json loads and plans, and two layers of its shapes run, with random weights.",
    "ids: its prompt's ids are checked with its own vocabulary. answer: so are those of a published answer and its",
    "prompt, and its speed was measured on a GPU in full size. No test here has seen the trained weights of any.",
)


def print_family() -> None:
    """Print the tables."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_create_family_table())
    for line in _LEGEND:
        console.print(line, soft_wrap=True)
    for headings, rows in (
        (("architecture", "language model"), SERVED),
        (("prompt profile", "system sentence"), [(name, p.meta_instruction) for name, p in PROFILES.items()]),
    ):
        console.print(_create_table(headings, rows))


def _create_family_table() -> "Table":
    from rich.table import Table

    table = Table(title="checkpoints of OpenGVLab/")
    for heading, is_number in (("checkpoint", False), ("language model", False), ("GiB", True), ("tested", False)):
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=heading != "tested")
    version = RELEASES[0].version
    for release in RELEASES:
        if release.version != version:
            table.add_section()
            version = release.version
        table.add_row(release.name, release.language_model, _count_gib(release), release.tested or "not yet")
    return table


def _count_gib(release: Release) -> str:
    """The size of the weights in GiB."""
    if not release.is_served:
        return ""
    return f"{count_weights(release.create_model()).total * DTYPE_BYTES['bfloat16'] / _GIB:.1f}"


def _create_table(headings: tuple[str, str], rows: "tuple[tuple[str, str], ...] | list[tuple[str, str]]") -> "Table":
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    return table
