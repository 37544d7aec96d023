"""A progress bar on stderr for long batches; rich is imported only where one is shown."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

_LONG_BATCH = 16


@contextmanager
def show_progress(total: int, wanted: bool | None) -> Generator[Callable[[], None]]:
    """Give a function to call once an item is done; `wanted=None` shows a long batch on a terminal only."""
    is_shown = wanted if wanted is not None else total >= _LONG_BATCH and sys.stderr.isatty()
    if not is_shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("answers", total=total)
        yield lambda: progress.advance(task)
