"""What a run says while it goes on: a bar on a terminal, lines elsewhere, CSV files and TensorBoard."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .settings import SettingsError

__all__ = ["Log", "tensorboard_writer", "write_rows"]

Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows as CSV at once, so that a run that was killed leaves no row that its checkpoint does not know."""
    if not rows:
        return
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def tensorboard_writer(folder: Path) -> Any:
    """A `SummaryWriter` in a folder.

    Raises:
        SettingsError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "tensorboard=true needs the package tensorboard: `pip install tensorboard`, or leave it out, as log.csv "
            "holds the same figures."
        ) from error
    return SummaryWriter(str(folder))


def _line(row: Mapping[str, Any], family: str) -> str:
    """A row for a reader: the files beside it hold all digits."""
    said = [f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in row.items()]
    return f"{family}: {', '.join(said)}"


class Log:
    """Progress on stderr's terminal, else a line an interval on stdout; rows to TensorBoard where it is given.

    Args:
        images: how many images a step trains on.
        bar: the bar's update, or None where there is no terminal.
        quiet: say nothing at all (the other processes of torchrun).
        writer: a `SummaryWriter` or None.
    """

    def __init__(self, images: int, bar: Any = None, quiet: bool = False, writer: Any = None) -> None:
        self.images, self.bar, self.quiet, self.writer = images, bar, quiet, writer
        self.clock, self.pace = time.monotonic(), 0.0

    def step(self, done: int, loss: float) -> None:
        """One step is done."""
        now = time.monotonic()
        # The pace of the last twenty steps or so.
        seconds, self.clock = now - self.clock, now
        self.pace = seconds if self.pace == 0 else 0.95 * self.pace + 0.05 * seconds
        if self.bar is not None:
            self.bar(done, loss, self.images / max(self.pace, 1e-9))

    def say(self, text: str) -> None:
        """A sentence for the user."""
        if not self.quiet:
            print(text, file=sys.stderr if self.bar is not None else sys.stdout, flush=True)

    def row(self, row: Mapping[str, Any], family: str) -> None:
        """Figures of an interval, under the name of their family."""
        if self.bar is None and not self.quiet:
            print(_line(row, family), flush=True)
        if self.writer is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)):
                    self.writer.add_scalar(f"{family}/{key}", value, row["step"])

    def skip_time(self) -> None:
        """Time that was spent on something else than steps does not count."""
        self.clock = time.monotonic()


@contextmanager
def logging(steps: int, start: int, images: int, *, quiet: bool, progress: bool, writer: Any) -> Iterator[Log]:
    """A log, with a bar where stderr is a terminal and `progress` asks for one."""
    if quiet or not progress or not sys.stderr.isatty():
        yield Log(images, quiet=quiet, writer=writer)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[pace]:.0f} images/s "),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress_bar:
        task = progress_bar.add_task("", total=steps, completed=start, loss=float("nan"), pace=0.0)
        average = 0.0

        def update(done: int, loss: float, pace: float) -> None:
            nonlocal average
            average = loss if average == 0 else 0.98 * average + 0.02 * loss
            progress_bar.update(task, completed=done, loss=average, pace=pace)

        yield Log(images, update, writer=writer)
