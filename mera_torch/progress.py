"""A progress bar on the terminal's error stream, with the time that is left."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from . import native

AFTER_SECONDS = 1.0


@contextmanager
def progress_bar(show: bool, title: str = "compile", after: float = AFTER_SECONDS) -> Iterator[native.Progress | None]:
    """A callback (stage, done, total) that draws a bar, or None if `show` is false or standard error is no terminal.

    It appears after so many seconds, so that what is quick does not flicker. Until the first call, and where total is
    0, a spinner shows that something goes on.
    """
    if not show or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=None)
    stages = [""]

    def update(stage: str, done: int, total: int) -> None:
        if stage != stages[-1]:  # the time left is that of this stage
            stages.append(stage)
            bar.reset(task, total=total or None)
        bar.update(task, description=f"{title}: {stage}", completed=done, total=total or None)

    def appear() -> None:
        with contextlib.suppress(LiveError):  # a caller draws already
            bar.start()

    timer = threading.Timer(after, appear)
    timer.daemon = True
    timer.start()
    try:
        yield update
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
