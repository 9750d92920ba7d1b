"""What Hydra itself is told, checked before it is run: launcher, sweeper, callbacks, logging and search path."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from hydra.core.override_parser.types import Override

from .allowed import HYDRA, LOGGING, SHELL, STREAMS
from .build import RefusedError, check, find

__all__ = ["check_hydra", "check_references", "check_search_path", "check_words"]

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# What Hydra calls or starts, and so resolves once more after it was checked.
_BUILT = ("callbacks", "hydra_logging", "job.env_set", "job_logging", "launcher", "sweeper._target_")
_REFERENCE = re.compile(r"\$\{(?:(?P<name>\w+(?:\.\w+)*)|(?:now|oc\.env):[^${}]*)\}")


def check_hydra(tree: Mapping[str, Any], allow: Collection[str] = ()) -> None:
    """Raise a sentence unless everything that Hydra would build or start from its own tree is allowed.

    Args:
        tree: the node `hydra` of a composed configuration, as mappings, lists and plain values.
        allow: "module:qualname" of a launcher, callback or handler, or the name of a setting of `SHELL`.

    Raises:
        RefusedError: for the first that is not.
    """
    check(tree, allow, where="hydra", known=HYDRA)
    sweeper = tree.get("sweeper") or {}
    if sweeper.get("_target_") != _BASIC:
        raise RefusedError(
            f"hydra.sweeper is {sweeper.get('_target_')}: expected hydra/sweeper=basic, the only one here."
        )
    if not (tree.get("launcher") or {}).get("_target_"):
        raise RefusedError("hydra.launcher is empty: leave it out, or give hydra/launcher=basic.")
    for place in ("hydra_logging", "job_logging"):
        _check_logging(tree.get(place) or {}, f"hydra.{place}", allow)
    if (tree.get("job") or {}).get("chdir"):
        # A relative out= would lead elsewhere in the job than in the sweep that looks for what it left.
        raise RefusedError("hydra.job.chdir is true: leave it out, as each job has its own folder in out=.")
    for name in SHELL:
        _, part, key = name.split(".")
        if (tree.get(part) or {}).get(key) and name not in allow:
            raise RefusedError(f"{name} is set, which a shell or a process would run: to allow it, say --allow {name}.")
    for where, _, value in _leaves(tree.get("launcher") or {}, "hydra.launcher"):
        # Each becomes a line of the script that a cluster runs.
        if isinstance(value, str) and "\n" in value:
            raise RefusedError(f"{where} has several lines, of which the second would be a command: give one line.")


def check_references(tree: Mapping[str, Any]) -> None:
    """Raise a sentence unless what Hydra builds of its own tree is then what it was when it was checked.

    Hydra resolves its tree again as it starts a job, when it knows more of it, such as the job's number. An
    interpolation that chooses by that could be harmless before; only those are left that are a text or number
    wherever they are resolved.

    Args:
        tree: a composed configuration, its interpolations as they are written.

    Raises:
        RefusedError: for the first interpolation that is another, or stands for the name of what is called.
    """
    for part in _BUILT:
        node: Any = tree["hydra"]
        for name in part.split("."):
            node = node.get(name) if isinstance(node, Mapping) else node
        place = f"hydra.{part}"
        _check_reference(tree, place, node, node)
        for where, key, value in _leaves(node, place):
            if key in ("_target_", "()", "class") and "${" in str(value):
                raise RefusedError(f"The configuration at {where} holds {value}: expected a name, written out.")
            _check_reference(tree, where, value, value)


def _check_reference(tree: Mapping[str, Any], where: str, written: Any, value: Any, depth: int = 0) -> None:
    if not isinstance(value, str) or "${" not in value:
        return
    plain = depth < 10 and "${" not in _REFERENCE.sub("", value)
    for match in _REFERENCE.finditer(value) if plain else ():
        found: Any = tree
        for name in (match["name"] or "").split(".") if match["name"] else ():
            found = found.get(name) if isinstance(found, Mapping) else None
        if match["name"] and (found is None or isinstance(found, Mapping | list | tuple)):
            plain = False
        elif match["name"]:
            _check_reference(tree, where, written, found, depth + 1)
    if not plain:
        raise RefusedError(
            f"The configuration at {where} holds {written}, which may be another thing when Hydra uses it: expected a "
            "plain value, or ${NAME} of one."
        )


def _check_logging(tree: Mapping[str, Any], place: str, allow: Collection[str]) -> None:
    """`logging.config.dictConfig` calls what stands at "()" and "class", and fetches what "ext://" names."""
    for where, key, value in _leaves(tree, place):
        if key in ("()", "class"):
            find(value, {*LOGGING, *allow}, f" at {where}")
        elif key == ".":
            raise RefusedError(f"The configuration at {where} sets attributes: expected handlers with their settings.")
        elif isinstance(value, str) and "://" in value and value not in STREAMS:
            raise RefusedError(f"The configuration at {where} names {value}: expected {' or '.join(sorted(STREAMS))}.")
        elif key == "filename":
            path = PurePosixPath(str(value))
            if path.is_absolute() or ".." in path.parts or path.suffix != ".log":
                raise RefusedError(
                    f"The configuration at {where} logs to {value}: expected a name that ends in .log, in this folder."
                )


def _leaves(tree: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of all that mappings and lists hold, the mappings themselves among them."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield f"{place}.{key}", str(key), value
            yield from _leaves(value, f"{place}.{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield f"{place}[{number}]", "", value
            yield from _leaves(value, f"{place}[{number}]")


def check_search_path(entries: Any, allow: Collection[str] = ()) -> None:
    """Raise a sentence unless every entry is a folder, or a package of ours or of `allow`: Hydra imports a package.

    Raises:
        RefusedError: for the first that is not.
    """
    for entry in entries if isinstance(entries, list | tuple) else [entries]:
        package = str(entry).removeprefix("pkg://")
        if str(entry).startswith("file://") or package in ("invdiff.experiments.conf", *allow):
            continue
        raise RefusedError(
            f"hydra.searchpath holds {entry}: expected file://FOLDER or pkg://invdiff.experiments.conf; to have "
            "another package imported, say --allow PACKAGE."
        )


def check_words(overrides: Iterable[Override], allow: Collection[str] = ()) -> None:
    """Raise a sentence for a word of a command line that would have Hydra import a package, or that it cannot merge.

    Raises:
        RefusedError: a search path, see `check_search_path`.
        ValueError: settings of a sweep as a mapping.
    """
    for override in overrides:
        name, value = override.key_or_group, override.value()
        if name in ("hydra.searchpath", "hydra"):
            check_search_path(value.get("searchpath", []) if isinstance(value, dict) else value, allow)
        if _sweeps(name, value):
            raise ValueError(
                f"{name} is given settings of a sweep as a mapping: sweep by -m with NAME=A,B, or write them in a file "
                "of --config-dir."
            )


def _sweeps(name: str, value: Any) -> bool:
    """Whether a word gives `hydra.sweeper.params` a mapping, which Hydra cannot merge with the none that is there."""
    for outer, inner in (("hydra", "sweeper"), ("hydra.sweeper", "params")):
        if name == outer and isinstance(value, Mapping):
            name, value = f"{outer}.{inner}", value.get(inner)
    return name == "hydra.sweeper.params" and isinstance(value, Mapping)
