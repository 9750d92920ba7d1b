"""The seconds of draws that were begun, stopped and gone on with."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["SPENT", "Spent"]

# Beside the draws while a job runs; nothing in their own folder depends on when it was stopped.
SPENT = "spent.json"


class Spent:
    """What earlier runs of a job took for the draws that they left, however they ended.

    A run that was killed cannot say how long it took. It says when it began, and its last draws say when they were
    written; what came after these is lost, and is part of the run that makes it again. Where no run said when it began,
    as earlier versions did not, it is when the first file of the draws was written.

    Args:
        draws: the folder of the draws.
    """

    def __init__(self, draws: Path) -> None:
        self.draws, self.path = draws, draws.parent / SPENT

    def begin(self) -> float:
        """The seconds of the runs before this one, which begins now."""
        known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        last = known.get(self.draws.name, {"before": 0.0, "began": self._first()}) if self.draws.is_dir() else None
        before = 0.0 if last is None else last["before"] + max(self._written() - last["began"], 0.0)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_text(json.dumps(known | {self.draws.name: {"before": before, "began": time.time()}}))
        os.replace(temporary, self.path)
        return float(before)

    def _first(self) -> float:
        return min((file.stat().st_mtime for file in self.draws.rglob("*") if file.is_file()), default=0.0)

    def _written(self) -> float:
        """When a draw was last finished."""
        marks = [file.stat().st_mtime for file in (self.draws / "sample_stats" / "done").rglob("*") if file.is_file()]
        return max(marks, default=0.0)
