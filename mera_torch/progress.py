"""A progress bar for the compiler, on the terminal's error stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import native


@contextmanager
def progress_bar(show: bool, title: str = "compile") -> Iterator[native.Progress | None]:
    """A callback (stage, done, total) that draws a bar, or None if `show` is false."""
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def update(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {stage}", completed=done, total=total)

        yield update
