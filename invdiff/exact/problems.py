"""Every problem of the laboratory, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from .gaussian import gaussian_problems
from .heavy import heavy_problems
from .mixtures import mixture16_problems, mixture25_problems
from .nonlinear import nonlinear_problems
from .problem import Problem

__all__ = ["FAMILIES", "Problem", "cells", "problems"]

_MAKERS: dict[str, Callable[[], Iterator[Problem]]] = {
    "gaussian": gaussian_problems,
    "mixture25": mixture25_problems,
    "mixture16": mixture16_problems,
    "heavy": heavy_problems,
    "nonlinear": nonlinear_problems,
}
FAMILIES = tuple(_MAKERS)


def problems(family: str | None = None) -> Iterator[Problem]:
    """The problems of one family, or of all, made when they are asked for and the same in every run.

    Raises:
        ValueError: for an unknown family.

    >>> next(problems("mixture25")).name
    'mixture25/d=8 dy=1/0'
    """
    if family is not None and family not in _MAKERS:
        raise ValueError(f"family is {family!r}: expected one of {', '.join(FAMILIES)}, or None for all.")
    chosen = FAMILIES if family is None else (family,)
    return (problem for name in chosen for problem in _MAKERS[name]())


def cells(family: str | None = None) -> dict[str, int]:
    """The cells of one family, or of all, with the number of problems in each: those of a cell are CELL/0, CELL/1, ...

    Raises:
        ValueError: for an unknown family.

    >>> cells("mixture16")["mixture16/A1 0.2"]
    5
    """
    return dict(Counter(problem.cell for problem in problems(family)))
