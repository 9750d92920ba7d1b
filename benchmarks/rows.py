"""Rows of results as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["merge", "read", "write"]

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows that stand in the file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def merge(standing: Sequence[Row], new: Iterable[Row], key: Sequence[str]) -> list[Row]:
    """The rows that stand, those of the same key replaced in their place, and the others after them.

    >>> merge([{"a": "1", "b": "2"}], [{"a": "2", "b": "0"}, {"a": "1", "b": "3"}], ["a"])
    [{'a': '1', 'b': '3'}, {'a': '2', 'b': '0'}]
    """
    found = {tuple(row[name] for name in key): row for row in [*standing, *new]}
    return list(found.values())


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """The rows as a CSV file, put in its place whole: long runs write at every row, and may be interrupted at any."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
