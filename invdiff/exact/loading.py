"""A solver by its name, or a class of one's own by its module and name."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ..options import nearest
from ..solvers import check_settings
from ..solvers import load as load_solver
from ..solvers.base import Solver

__all__ = ["load", "sentence"]


def load(name: str, **settings: Any) -> Solver:
    """The solver of that name in `invdiff list`, or a class of one's own, "module:Class".

    The module is imported from the current folder or from where Python finds it.

    Args:
        name: such as "ddrm", or "mysolver:MySolver" for the class MySolver of mysolver.py.
        settings: of the solver.

    Raises:
        ValueError: an unknown name or setting, a module that cannot be imported, a class that it does not hold or that
            is no solver.

    >>> load("ddrm", steps=20).steps
    20
    """
    if ":" not in name:
        return load_solver(name, **settings)
    module, _, kind = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), kind)):
        raise ValueError(
            f"The solver is {name!r}: expected a name, or module:Class such as mysolver:MySolver (no .py)."
        )
    found = _import(module)
    classes = [key for key, value in vars(found).items() if isinstance(value, type) and value.__module__ == module]
    cls = getattr(found, kind, None)
    if cls is None:
        raise ValueError(f"The module {module} has no class {kind!r}{nearest(kind, classes) if classes else '.'}")
    if not isinstance(cls, type):
        raise ValueError(f"{name} is {type(cls).__name__}: expected a class with `stochastic` and `iterate`.")
    check_settings(cls, settings)
    try:
        solver = cls(**settings)
    except TypeError as error:
        raise ValueError(f"{name} cannot be made of its settings ({error}): give each as solver.NAME=VALUE.") from error
    if not isinstance(solver, Solver):
        missing = " and ".join(f"`{part}`" for part in ("stochastic", "iterate") if not hasattr(solver, part))
        raise ValueError(f"{name} is no solver: it has no {missing}; see invdiff.solvers.Solver.")
    return solver


def _import(module: str) -> ModuleType:
    """A module of the current folder, or of where Python looks."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"There is no module {module!r} in {here} or where Python looks.") from error
        raise ValueError(f"The module {module!r} needs {error.name!r}, which is not installed.") from error
    except Exception as error:  # a module of the user's runs when it is imported, and may raise anything
        raise ValueError(f"The module {module!r} cannot be imported: {sentence(error)}") from error
    finally:
        sys.path.remove(here)


def sentence(error: Exception) -> str:
    """Kind and text of an error, and where in the caller's own code it was raised."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ").rstrip(".")
    ours = str(Path(__file__).resolve().parent.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.lineno is not None]
    own = [f for f in frames if not f.filename.startswith(ours) and "site-packages" not in f.filename]
    return f"{text} ({Path(own[-1].filename).name}, line {own[-1].lineno})." if own else f"{text}."
