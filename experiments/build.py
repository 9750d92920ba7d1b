"""From a configuration to objects, and from nothing else: what a configuration names must stand on a list.

A configuration is text of anybody's. `hydra.utils.instantiate` calls whatever its `_target_` names, and any module that
imports torch also spells `torch.load`. Here the object that a name leads to is asked for its own module and qualified
name, and these must be on the list `invdiff.experiments.allowed`, before anything is called.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from types import MethodType, ModuleType
from typing import Any

from .allowed import ALLOWED, GUARDED

__all__ = ["RefusedError", "build", "check", "find", "identity"]

_TARGET = "_target_"


class RefusedError(ValueError):
    """A configuration names what it may not call, or calls it in a way that it may not."""


def build(tree: Any, allow: Collection[str] = ()) -> Any:
    """Build what a resolved tree describes: a mapping with `_target_` becomes a call with its other keys.

    The whole tree is checked before the first call. Lists become tuples.

    Args:
        tree: mappings, lists and plain values; no interpolations.
        allow: more names "module:qualname", as in `invdiff.experiments.allowed.ALLOWED`.

    Raises:
        RefusedError: see `check`.

    >>> build({"_target_": "invdiff.solvers.DDRM", "steps": 7}).steps
    7
    >>> build({"_target_": "torch.load", "f": "weights.pt"})
    Traceback (most recent call last):
    invdiff.experiments.build.RefusedError: The configuration names torch.load, which is torch.serialization:load: ...
    """
    check(tree, allow)
    return _make(tree, allow)


def check(tree: Any, allow: Collection[str] = (), *, where: str = "", known: Collection[str] = ALLOWED) -> None:
    """Raise a sentence unless every call in a resolved tree is one that is allowed; nothing is called.

    Args:
        tree: mappings, lists and plain values.
        allow: more names "module:qualname".
        where: the name of the tree, for the sentence.
        known: the list to go by.

    Raises:
        RefusedError: a `_target_` that is not on the list, an option of `hydra.utils.instantiate` beside it
            (`_args_`, `_partial_`, ...), a setting that the object does not take or that is guarded, or a download.
    """
    for place, node in _calls(tree, where):
        # Hydra's launchers take what they are given; here a setting is one that a signature names.
        _check_call(node, place, {*known, *allow}, named=known is ALLOWED)


def _calls(tree: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that holds a key of the form `_x_`, wherever it stands."""
    if isinstance(tree, Mapping):
        if any(_special(key) for key in tree):
            yield place, tree
        for key, value in tree.items():
            yield from _calls(value, f"{place}.{key}" if place else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _calls(value, f"{place}[{number}]")


def _special(key: Any) -> bool:
    return isinstance(key, str) and len(key) > 2 and key.startswith("_") and key.endswith("_")


def _check_call(node: Mapping[str, Any], place: str, names: Collection[str], *, named: bool) -> None:
    at = f" at {place}" if place else ""
    odd = [key for key in node if _special(key) and key != _TARGET]
    if odd:
        raise RefusedError(f"The configuration{at} holds {odd[0]}: expected {_TARGET}, and settings of what it names.")
    target = node[_TARGET]
    found = find(target, names, at)
    settings = [key for key in node if key != _TARGET]
    parameters = inspect.signature(found).parameters.values()
    taken = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for key in settings if named else ():
        if key not in taken:
            close = difflib.get_close_matches(str(key), taken, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(taken) or 'none'}."
            raise RefusedError(f"The configuration{at} gives {target} the setting {key!r}, which it lacks: {hint}")
    for key in settings:
        guarded = f"{identity(found)}.{key}"
        if guarded in GUARDED and node[key] is not None and guarded not in names:
            raise RefusedError(
                f"The configuration{at} sets {key}, {GUARDED[guarded]}: to allow it, say --allow {guarded}."
            )
    if node.get("pretrained") == "download":
        raise RefusedError(f"The configuration{at} asks for a download: give a file of weights that is there.")


def find(name: Any, names: Collection[str] = ALLOWED, at: str = "") -> Any:
    """The object that a dotted name leads to, if its own module and qualified name are among `names`.

    A module is imported only if it holds something of `names`, or is a package above such a module.

    Raises:
        RefusedError: it is something else, cannot be found, or calls itself what it is not.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise RefusedError(f"The configuration{at} names {name!r}: expected a name such as invdiff.solvers.DDRM.")
    found = _look_up(name, names)
    if found is None:
        entry = ":".join(name.rsplit(".", 1))
        if entry in names:
            raise RefusedError(
                f"The configuration{at} names {name}, which Python does not find: set PYTHONPATH to the folder that "
                "holds its module, or mend the name."
            )
        raise RefusedError(f"The configuration{at} names {name}: {_NOT_ALLOWED} {entry if ':' in entry else _FORM}.")
    own = identity(found)
    if own not in names:
        alias = f", which is {own}" if own is not None else ""
        raise RefusedError(f"The configuration{at} names {name}{alias}: {_NOT_ALLOWED} {own or _FORM}.")
    return found


_NOT_ALLOWED = (
    "it is not on the list of what a configuration may call (invdiff/experiments/allowed.py); to allow it, say --allow"
)
_FORM = "MODULE:NAME"


def identity(found: Any) -> str | None:
    """ "module:qualname" of a class, a function or a classmethod; None for anything that states none or a false one."""
    module, qualname = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or isinstance(found, ModuleType):
        return None
    if isinstance(found, MethodType):
        owner = found.__self__
        # A method of a subclass, or of an object, carries the name of the class that wrote it.
        if not isinstance(owner, type) or f"{owner.__qualname__}.{found.__name__}" != qualname:
            return None
        if owner.__module__ != module:
            return None
    # What wraps a function may carry its name: only what stands at that place is it.
    there: Any = sys.modules.get(module)
    for part in qualname.split("."):
        there = getattr(there, part, None)
    return f"{module}:{qualname}" if there is not None and there == found else None


def _look_up(name: str, names: Collection[str]) -> Any:
    holders = {entry.partition(":")[0] + "." for entry in names}
    packages = {module[:end] for module in holders for end, letter in enumerate(module) if letter == "."}
    parts = name.split(".")
    found: Any = None
    for number, part in enumerate(parts, 1):
        path = ".".join(parts[:number])
        inner = getattr(found, part, None) if number > 1 else None
        if inner is None and path in packages:
            inner = _import(path)
        if inner is None:
            # Loaded already: looking at it runs nothing.
            inner = sys.modules.get(path)
        if inner is None:
            return None
        found = inner
    return found


def _import(path: str) -> ModuleType | None:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        # An optional package that is missing is said in its own words.
        if error.name is not None and not path.startswith(error.name):
            raise
        return None


def _make(tree: Any, allow: Collection[str]) -> Any:
    if isinstance(tree, Mapping):
        values = {key: _make(value, allow) for key, value in tree.items() if key != _TARGET}
        if _TARGET not in tree:
            return values
        return find(tree[_TARGET], {*ALLOWED, *allow})(**values)
    if isinstance(tree, list | tuple):
        return tuple(_make(value, allow) for value in tree)
    return tree
