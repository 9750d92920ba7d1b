"""The truth that a folder keeps beside its draws, and whether it still is what was put there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import layout
from .record import digest
from .stored import DamagedError, open_root, read_constants

if TYPE_CHECKING:
    import zarr

__all__ = ["read_truth", "same_truth", "write_truth"]


def write_truth(root: zarr.Group, truth: Tensor, names: Sequence[str]) -> None:
    """Put the truth beside the draws, with its SHA-256."""
    held = layout.plain(truth)
    layout.constant(root, "truth/x", held, names, {"sha256": digest(held)})


def read_truth(path: str | Path) -> Tensor | None:
    """The truth that a folder keeps, ([m,] *in_shape); None where it keeps none.

    Raises:
        DamagedError: it cannot be read, or is no longer what was put there.
    """
    path = Path(path)
    place = path / "truth" / "x"
    try:
        truth = read_constants(path, "truth").get("x")
    except DamagedError as error:
        raise _damaged(place) from error
    if truth is None:
        return None
    array: Any = open_root(path, "r")["truth/x"]
    known = array.attrs.get("sha256")
    # A chunk that is gone reads as zeros, as a black truth does, whose chunk was never written: the hash tells them
    # apart. Folders of earlier versions have none, and a truth that is black all over is no photograph.
    if digest(truth) != known if known is not None else not bool(truth.any()):
        raise _damaged(place)
    return truth


def same_truth(path: Path, truth: Tensor) -> bool | None:
    """Whether a folder keeps this truth; None where it keeps none, or one that is damaged."""
    try:
        kept = read_truth(path)
    except DamagedError:
        return None
    return None if kept is None else kept.equal(layout.plain(truth))


def _damaged(place: Path) -> DamagedError:
    return DamagedError(
        place,
        f"{place} is damaged, or its file is gone: restore it from a copy, or run the same restore with its truth (or "
        "sample(..., truth=...)) again, which writes it anew.",
    )
