"""The words of a command line: settings of one choice alone, and sentences for words that lead nowhere."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["PLURALS", "Scoped", "compose_with", "leaves", "loaded", "require_used", "scoped", "sentence"]

# A group's settings are those of whatever was chosen of it; in the plural they are those of one choice alone.
PLURALS = {"operators": "operator", "noises": "noise", "priors": "prior", "solvers": "solver"}
_SCOPED = re.compile(rf"(\+{{0,2}}|~)({'|'.join(PLURALS)})\.([^.=/@]+)\.(.+)", re.DOTALL)
_NO_KEY = re.compile(r"Could not override '([^']+)'")


@dataclass(frozen=True)
class Scoped:
    """A setting of one choice alone, such as `solvers.kps.steps=30`.

    Args:
        word: as it was given.
        group: "solver".
        choice: "kps".
        plain: what it is for a job of that choice, "solver.steps=30".
    """

    word: str
    group: str
    choice: str
    plain: str


def scoped(word: str) -> Scoped | None:
    """What a word says of one choice alone; None for any other word.

    >>> scoped("solvers.kps.steps=30").plain
    'solver.steps=30'
    >>> scoped("solver.steps=30") is None
    True
    """
    found = _SCOPED.fullmatch(word)
    if found is None:
        return None
    sign, plural, choice, rest = found.groups()
    return Scoped(word, PLURALS[plural], choice, f"{sign}{PLURALS[plural]}.{rest}")


def compose_with(
    load: Callable[[list[str]], DictConfig], words: Sequence[str], used: set[str]
) -> tuple[list[str], Any]:
    """The configuration of these words, and the words that it comes of: those for other choices are left out.

    Args:
        load: composes words that are of no choice alone.
        words: of one job.
        used: to which those are added that are of its choices.

    Raises:
        ValueError: a setting that there is none of, with what was chosen.
    """
    plain = [word for word in words if scoped(word) is None]
    cfg = loaded(load, plain)
    chosen = cfg.hydra.runtime.choices
    own = [found for word in words if (found := scoped(word)) and chosen.get(found.group) == found.choice]
    if not own:
        return plain, cfg
    used.update(found.word for found in own)
    # Behind the others, as they are of less.
    plain += [found.plain for found in own]
    return plain, loaded(load, plain)


def require_used(words: Collection[str], used: Collection[str], choices: Collection[tuple[str, str]]) -> None:
    """Raise a sentence for a setting of a choice that no job has: it would be left out in silence.

    Args:
        words: of all jobs.
        used: the ones of them that were of use.
        choices: (group, choice) of all jobs.

    Raises:
        ValueError: for the first.
    """
    for word in words:
        found = scoped(word)
        if found is not None and word not in used:
            there = sorted({choice for group, choice in choices if group == found.group})
            hint = _nearest(found.choice, there) or f"{_choose(there)}."
            raise ValueError(f"{word} is for {found.group}={found.choice}, which no job has: {hint}")


def loaded(load: Callable[[list[str]], DictConfig], words: list[str]) -> DictConfig:
    """The configuration of these words.

    Raises:
        ValueError: a setting that there is none of, with what was chosen.
    """
    try:
        return load(words)
    except ConfigCompositionException as error:
        found = _NO_KEY.match(str(error))
        rest = [word for word in words if found and _key(word) != found[1]]
        if found is None or len(rest) == len(words):
            raise
        said = _no_setting(found[1], loaded(load, rest))
        raise ValueError(said) from error


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _no_setting(key: str, cfg: DictConfig) -> str:
    """A sentence on a name that a configuration lacks."""
    tree: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))
    choices = {str(name): choice for name, choice in cfg.hydra.runtime.choices.items() if "hydra" not in str(name)}
    group, _, rest = key.partition(".")
    if group not in tree or not rest:
        return f"There is no setting {key}: {_nearest(key, {**tree, **choices}) or '--cfg prints all there are.'}"
    known = [name for name, _ in leaves(tree[group], group)]
    chosen = f" with {group}={choices[group]}" if choices.get(group) else ""
    close = _nearest(rest, [name.removeprefix(f"{group}.") for name in known], f"{group}.")
    if close:
        return f"There is no setting {key}{chosen}: {close}"
    plural = next((plural for plural, name in PLURALS.items() if name == group), None)
    alone = f"; {plural}.NAME.{rest}=VALUE is for {group}=NAME alone" if plural and chosen else ""
    return f"There is no setting {key}{chosen}: {_choose(known)}{alone}."


def leaves(tree: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of all that a tree of settings holds, without the names of what is called."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key != "_target_":
                yield from leaves(value, f"{place}.{key}")
    else:
        yield place, tree


def _nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """ "did you mean tv?", or nothing where no name is near."""
    close = difflib.get_close_matches(word, list(dict.fromkeys(known)), 3, 0.6)
    return f"did you mean {' or '.join(prefix + name for name in close)}?" if close else ""


def _choose(known: Sequence[str]) -> str:
    return f"choose from {', '.join(known)}" if known else "it has none"


def sentence(error: BaseException) -> str:
    """One sentence of any error; Hydra's advice is put into the words of this project."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        close, there = _nearest(choice, error.options), _choose(list(error.options))
        return f"There is no {group}={choice}{f' ({close})' if close else ''}: {there}."
    if isinstance(error, OmegaConfBaseException):
        place = f" at {error.full_key}" if error.full_key else ""
        why = said.partition(" full_key:")[0]
        return f"The configuration{place} cannot be resolved ({why}): mend it, or leave out what refers to it."
    if said.startswith("Config group override must be a string"):
        return "A group is given no name of a file: expected GROUP=CHOICE, such as prior=tv."
    if isinstance(error, OverrideParseException):
        why = said.partition(" See https://")[0].removeprefix(f"Error parsing override '{error.override}' ")
        return (
            f"The setting {error.override!r} cannot be read ({why}): expected NAME=VALUE, with quotes around odd signs."
        )
    if found := re.match(r"Ambiguous value for argument '([^']+)'", said):
        return f"{found[1]} has several values: -m runs a job of each, and [A,B] is a list."
    if found := re.match(r"Could not append to config\. An item is already at '([^']+)'", said):
        return f"There is a setting {found[1]} already: leave out the plus."
    # What follows are folders of Hydra's and ours.
    return said.partition(" Config search path:")[0] if isinstance(error, HydraException) else said
