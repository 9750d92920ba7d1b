"""The bar that `sample` shows on a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(solver: object, total: int, size: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with draws done and time left; nothing where stderr is not a terminal.

    Args:
        solver: its class names the bar, its `steps` or `iterations` are the steps of a batch.
        total: draws in all.
        size: draws that one batch gives.
        wanted: False shows nothing.
    """
    steps = getattr(solver, "steps", None) or getattr(solver, "iterations", None)
    if not wanted or not sys.stderr.isatty() or steps is None:
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(type(solver).__name__),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[draws]} draws"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        batches = math.ceil(total / size)
        task = bar.add_task("", total=batches * steps, done=0, draws=total)
        calls = 0

        def advance(step: int) -> None:
            nonlocal calls
            calls += 1
            bar.update(task, completed=calls, done=min(calls // steps * size, total))

        yield advance
