"""Functions and classes of others told apart: by their code and everything that it reaches.

The same source gives the same description in every process of one version of Python.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import json
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["code_of_class", "describe_callable", "is_library", "opaque_in", "qualified"]

Describe = Callable[[object], Any]

# What comes in versions, by which it is told apart; its code is not hashed.
_LIBRARIES = {"invdiff", "torch", "numpy", "scipy"} | sys.stdlib_module_names
_WRAPPED = (staticmethod, classmethod, functools.cached_property, functools._lru_cache_wrapper, functools.partialmethod)


def is_library(module: str) -> bool:
    """Whether a module is installed, rather than written by whoever draws."""
    if module.partition(".")[0] in _LIBRARIES:
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def qualified(thing: Any) -> str:
    """The name of a class or function with its module's."""
    module = str(getattr(thing, "__module__", None) or "builtins").replace("__mp_main__", "__main__")
    return f"{module}.{getattr(thing, '__qualname__', None) or getattr(thing, '__name__', type(thing).__name__)}"


def describe_callable(thing: Any, describe: Describe) -> dict[str, Any] | None:
    """What a function does, as JSON can hold it; None for what is no function.

    Args:
        thing: a function, a bound method, a functools.partial, a function of C.
        describe: of what it holds: closures, defaults, the values of the globals that it reads.
    """
    if isinstance(thing, functools.partial):
        bound = {"args": describe(list(thing.args)), "keywords": describe(thing.keywords)}
        return {"partial": describe(thing.func)} | bound
    if isinstance(thing, functools._lru_cache_wrapper):
        return {"cached": describe(thing.__wrapped__)}
    if isinstance(thing, types.MethodType):
        return {"method": thing.__func__.__name__, "of": describe(thing.__self__)}
    if isinstance(thing, types.BuiltinFunctionType):
        held = thing.__self__
        of = {} if held is None or isinstance(held, types.ModuleType) else {"of": describe(held)}
        return {"function": qualified(thing)} | of
    if isinstance(thing, types.FunctionType):
        out = {"function": qualified(thing)} | _alone(thing, describe)
        reached = {} if is_library(thing.__module__ or "") else _reached([thing], describe)
        return out | ({"globals": reached} if reached else {})
    if type(thing).__name__ == "ufunc":
        return {"function": f"numpy.{thing.__name__}"}
    return None


def code_of_class(kind: type, describe: Describe) -> dict[str, str]:
    """The SHA-256 of the code of a class and of those that it inherits from, libraries' left out.

    It has the key "opaque" too where the code reads something that cannot be described.
    """
    parts = {qualified(part): _body(part, describe) for part in _bases(kind)}
    reached = _reached([f for part in _bases(kind) for f in _methods(part)], describe)
    out = {"code": _digest([parts, reached])}
    hidden = opaque_in([parts, reached])
    return out if hidden is None else out | {"opaque": hidden}


def _bases(kind: type) -> list[type]:
    return [part for part in kind.__mro__ if not is_library(part.__module__)]


def _unwrapped(value: Any) -> list[Any]:
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset) if part is not None]
    if isinstance(value, _WRAPPED):
        value = getattr(value, "__func__", None) or getattr(value, "func", None) or getattr(value, "__wrapped__", value)
    return [value]


def _methods(kind: type) -> list[types.FunctionType]:
    """The functions of a class that somebody wrote: those of dataclasses are not, and follow from the fields."""
    values = [part for name, value in sorted(vars(kind).items()) if name != "__repr__" for part in _unwrapped(value)]
    written = [value for value in values if isinstance(value, types.FunctionType)]
    return [value for value in written if value.__code__.co_filename != "<string>"]


def _body(kind: type, describe: Describe) -> dict[str, Any]:
    """Methods and plain attributes of a class."""
    plain = {
        name: describe(value)
        for name, value in vars(kind).items()
        if not name.startswith("__") and isinstance(value, bool | int | float | str | tuple)
    }
    return plain | {f.__qualname__: _alone(f, describe) for f in _methods(kind)}


def _alone(function: types.FunctionType, describe: Describe) -> dict[str, Any]:
    """A function without the globals that it reads."""
    out: dict[str, Any] = {}
    if not is_library(function.__module__ or ""):
        out["code"] = _digest(_code(function.__code__))
    closure = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held = cell.cell_contents
        except ValueError:  # assigned later, or never
            continue
        closure[name] = {"class": qualified(held)} if isinstance(held, type) else describe(held)
    if closure:
        out["closure"] = closure
    defaults = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    # Those of a library's own functions come with its version.
    if defaults and ("code" in out or "<locals>" in function.__qualname__):
        out["defaults"] = describe(defaults)
    return out


def _reached(functions: Iterable[types.FunctionType], describe: Describe) -> dict[str, Any]:
    """The globals that functions read, and those that the functions and classes among them read, by name."""
    found: dict[str, Any] = {}
    queue = list(functions)
    for function in queue:  # grows
        space = function.__globals__
        module = str(space.get("__name__", "")).replace("__mp_main__", "__main__")
        if is_library(module):
            continue
        for name in sorted(_globals(function.__code__)):
            key = f"{module}.{name}"
            if key in found or name not in space:
                continue
            value = space[name]
            if isinstance(value, types.ModuleType):
                # What is read of it does not stand in the code.
                if not is_library(value.__name__):
                    found[key] = {"opaque": value.__name__}
            elif isinstance(value, type):
                found[key] = {"class": qualified(value)}
                for part in _bases(value):
                    found[qualified(part)] = _body(part, describe)
                    queue += _methods(part)
            elif isinstance(value, types.FunctionType):
                found[key] = {"function": qualified(value)} | _alone(value, describe)
                queue.append(value)
            else:
                found[key] = describe(value)
    return found


def _globals(code: types.CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names |= _globals(inner)
    return names


def _code(code: types.CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(value) for value in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return [_constant(item) for item in value]
    if isinstance(value, frozenset):  # its order is another one in every process
        return ["frozenset", *sorted(repr(item) for item in value)]
    return f"{type(value).__name__} {value!r}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def opaque_in(value: Any) -> str | None:
    """What a description does not tell, by name; None where it tells everything."""
    if isinstance(value, dict):
        if isinstance(value.get("opaque"), str):
            return str(value["opaque"])
        value = list(value.values())
    if isinstance(value, list):
        return next((name for name in map(opaque_in, value) if name is not None), None)
    return None
