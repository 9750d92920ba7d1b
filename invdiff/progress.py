"""The bar that `sample` shows on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Progress", "progress_bar"]


@dataclass
class Progress:
    """What is told of the work: every step of a micro-batch, and every micro-batch that is finished.

    Args:
        show: called with the share of micro-batches that are done, the number of draws, and what is said beside them.
        steps: of a micro-batch; None where a solver does not say.
        done: draws that are done.
    """

    show: Callable[[float, int, str], None]
    steps: int | None
    done: int
    blocks: int = 0
    said: str = ""

    def step(self, step: int) -> None:
        """A step of the present micro-batch is done."""
        if self.steps:
            self.show(self.blocks + min(step / self.steps, 1.0), self.done, self.said)

    def block(self, draws: int) -> None:
        """A micro-batch is done, and as many draws with it."""
        self.blocks += 1
        self.done += draws
        self.show(self.blocks, self.done, self.said)

    def say(self, words: str) -> None:
        """Words beside the number of draws."""
        self.said = words
        self.show(self.blocks, self.done, words)


@contextmanager
def progress_bar(solver: object, total: int, blocks: int, wanted: bool, already: int = 0) -> Iterator[Progress]:
    """A bar on stderr with draws done and time left; nothing where stderr is not a terminal.

    Args:
        solver: its class names the bar, its `steps` or `iterations` are the steps of a micro-batch.
        total: draws in all.
        blocks: micro-batches to compute.
        wanted: False shows nothing.
        already: draws that were done before.
    """
    steps = getattr(solver, "steps", None) or getattr(solver, "iterations", None)
    if not wanted or not sys.stderr.isatty():
        yield Progress(lambda share, done, said: None, steps, already)
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn(type(solver).__name__),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[done]}/{task.fields[draws]} draws{task.fields[said]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=blocks, done=already, draws=total, said="")

        def show(share: float, done: int, said: str) -> None:
            bar.update(task, completed=share, done=min(done, total), said=said and f", {said}")

        yield Progress(show, steps, already)
