"""Experiments that compare priors: `invdiff experiment ...`, or `python -m invdiff.experiments.run ...`.

One job, or with `-m` a sweep over several, one after another or on a cluster. Each job has a folder in `out`; started
again, a sweep runs what is missing. `experiments/conf/run.yaml` says what the settings are, `docs/experiments.md` how
to use them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from . import protocols
from .build import check
from .hydra_tree import check_hydra, check_references, check_search_path, check_words
from .jobs import FREE, GROUPS, TITLE, Job, State, current, run, state
from .words import PLURALS, compose_with, leaves, loaded, require_used, sentence

__all__ = ["compose", "main", "run_job"]

CONF = Path(__file__).with_name("conf")
# Of one job: its words, and its configuration or what it is.
Composed = tuple[list[str], DictConfig]
Planned = tuple[list[str], Job]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; 0 when it went well, 1 when a job failed, 2 for bad input, 130 after Ctrl-C."""
    arguments = _parser().parse_intermixed_args(sys.argv[1:] if argv is None else list(argv))
    try:
        with _hydra(arguments) as hydra:
            master, composed = _compose(hydra, arguments)
            if arguments.cfg:
                for number, (words, cfg) in enumerate(composed, 1):
                    head = f"---\n# job {number} of {len(composed)}: {' '.join(words)}\n" if words else ""
                    print(head + OmegaConf.to_yaml(_without_hydra(cfg)), end="")
                return 0
            return _run(hydra, master, _plan(composed, arguments.allow), arguments.allow)
    except KeyboardInterrupt:
        print(
            "invdiff: Interrupted: the jobs that are done are kept; the same line goes on with the rest.",
            file=sys.stderr,
        )
        return 130
    except (HydraException, OmegaConfBaseException, ValueError, OSError, ImportError) as error:
        print(f"invdiff: {sentence(error)}", file=sys.stderr)
        return 2


def compose(overrides: Sequence[str], *, allow: Sequence[str] = ()) -> list[Job]:
    """The jobs of these overrides, as of the command line, checked and not run.

    >>> [job.names["prior"] for job in compose(["-m", "prior=tv,wavelet", "solver=ddrm"])]
    ['tv', 'wavelet']
    """
    arguments = _parser().parse_intermixed_args(list(overrides))
    arguments.allow += allow
    with _hydra(arguments) as hydra:
        _, composed = _compose(hydra, arguments)
        return [job for _, job in _plan(composed, arguments.allow)]


def run_job(cfg: DictConfig, *, allow: Sequence[str], note: dict[str, str], jobs: dict[str, Job]) -> str:
    """One job of a sweep, as a launcher calls it, perhaps in another process; what its state is."""
    job = jobs[_job(cfg, {}, (), allow).key]
    return run(job, note[job.key]).status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="invdiff experiment",
        description="Run an experiment, or a sweep over several; each job has a folder in out=.",
        epilog="Groups: data, operator, noise, prior, solver, engine, experiment. See docs/experiments.md.",
        # A shortened flag could be another one in a later version.
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="NAME=VALUE", help="settings, such as prior=tv or solver.steps=20"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep: NAME=A,B runs both")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own settings beside ours")
    parser.add_argument("--config-name", default="run", help="the file to begin with, without .yaml")
    parser.add_argument(
        "--cfg", action="store_true", help="print the settings, of a sweep those of each job, and run nothing"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="let the settings call this too, a class or function of your own; may be repeated",
    )
    return parser


@contextmanager
def _hydra(arguments: argparse.Namespace) -> Iterator[Hydra]:
    """Hydra with our settings and the user's; nothing of either has been built."""
    _check_sources(arguments)
    search_path = create_config_search_path(str(CONF))
    if arguments.config_dir is not None:
        if not arguments.config_dir.is_dir():
            raise NotADirectoryError(f"--config-dir is {arguments.config_dir}: expected a folder of .yaml files.")
        search_path.prepend("command-line", f"file://{arguments.config_dir.resolve()}", SearchPathQuery("schema", None))
    version.setbase("1.3")
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("experiment", search_path)
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = before


def _check_sources(arguments: argparse.Namespace) -> None:
    """Hydra imports the packages of its search path as it composes, so that these are looked at before."""
    for folder in (arguments.config_dir, CONF):
        path = None if folder is None else folder / f"{arguments.config_name.removesuffix('.yaml')}.yaml"
        if path is not None and path.is_file():
            # Unresolved: an interpolation is none of the names that are allowed.
            loaded = OmegaConf.to_container(OmegaConf.load(path))
            node = (loaded.get("hydra") if isinstance(loaded, dict) else None) or {}
            # Of a text, which is an interpolation, nobody knows yet what it will hold.
            check_search_path((node.get("searchpath") or []) if isinstance(node, dict) else node, arguments.allow)
    check_words(OverridesParser.create().parse_overrides(arguments.overrides), arguments.allow)


def _compose(hydra: Hydra, arguments: argparse.Namespace) -> tuple[DictConfig, list[Composed]]:
    """The configuration that has Hydra's own part, and that of each job with its words; what is Hydra's is checked."""
    name, words, used = arguments.config_name, arguments.overrides, set[str]()
    single = None if arguments.multirun else _single(hydra, name, words, used)
    if single is not None:
        master, given = single, dict.fromkeys(words)
        composed: list[Composed] = [([], single)]
    else:
        # Of the choices that are swept it has the usual one, which may lack their settings.
        load = partial(hydra.compose_config, name, run_mode=RunMode.MULTIRUN, from_shell=False)
        master = loaded(load, _broad(words))
        _require_whole(master)
        _check_tree(master, arguments.allow)
        composed, given = _jobs_of(hydra, master, words, used, arguments.allow)
    for _, cfg in composed:
        _require_whole(cfg)
        _check_tree(cfg, arguments.allow)
    require_used(given, used, {choice for _, cfg in composed for choice in _names(cfg).items()})
    return master, composed


def _single(hydra: Hydra, name: str, words: list[str], used: set[str]) -> DictConfig | None:
    """The configuration of one job; None where a file says that these are several."""
    load = partial(hydra.compose_config, name, run_mode=RunMode.RUN, from_shell=False)
    try:
        _, cfg = compose_with(load, words, used)
    except (HydraException, ValueError):
        if hydra.get_mode(name, _broad(words)) == RunMode.MULTIRUN:
            return None
        raise
    return None if cfg.hydra.mode == RunMode.MULTIRUN else cfg


def _broad(words: list[str]) -> list[str]:
    """What is Hydra's, the choices and the settings of no group."""
    parsed = OverridesParser.create().parse_overrides(words)
    pairs = zip(words, parsed, strict=True)
    return [word for word, o in pairs if o.is_hydra_override() or not {".", "/"} & set(o.key_or_group)]


def _require_whole(cfg: DictConfig) -> None:
    known = [str(key) for key in OmegaConf.load(CONF / "run.yaml") if key not in ("defaults", "hydra")]
    for key in (*GROUPS, "engine", *known):
        if key not in cfg:
            raise ValueError(
                f"The configuration has no {key}: leave out ~{key}, and begin a file of your own with "
                "defaults: [run, _self_]."
            )
    for plural, group in PLURALS.items():
        if plural in cfg:
            raise ValueError(
                f"The configuration has {plural}, which nothing reads: settings of one {group} alone are given on the "
                f"command line, as {plural}.NAME.SETTING=VALUE."
            )


def _jobs_of(
    hydra: Hydra, master: DictConfig, words: list[str], used: set[str], allow: Sequence[str]
) -> tuple[list[Composed], dict[str, None]]:
    """Each job of a sweep with the words that make it, and all the words that were swept."""
    swept = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    own = [override for override in parser.parse_overrides(words) if not override.is_hydra_override()]
    params = parser.parse_overrides(swept)
    # Each job is composed with these, and so imports the packages of a search path among them.
    check_words(params, allow)
    (batch,) = BasicSweeper.split_arguments([*params, *own], None)
    if not batch:
        raise ValueError(f"The sweep {' '.join(words)} has no job: expected a glob(...) that fits a choice.")
    load = partial(hydra.config_loader.load_sweep_config, master)
    found: dict[tuple[str, ...], DictConfig] = {}
    for given in batch:
        # What is for one choice alone makes no second job of another.
        job, cfg = compose_with(load, given, used)
        found.setdefault(tuple(job), cfg)
    return [(list(job), cfg) for job, cfg in found.items()], {word: None for given in batch for word in given}


def _plan(composed: Sequence[Composed], allow: Sequence[str]) -> list[Planned]:
    """Every job, all checked; what tells it from others of the same title stands in its title, too."""
    titles = [tuple(_names(cfg)[group] for group in TITLE) for _, cfg in composed]
    planned = []
    for title, (words, cfg) in zip(titles, composed, strict=True):
        same = [set(other) for name, (other, _) in zip(titles, composed, strict=True) if name == title]
        varied = [word for word in words if word.partition("=")[0] not in TITLE and any(word not in o for o in same)]
        planned.append((words, _checked(cfg, varied, allow)))
    return planned


def _check_tree(cfg: DictConfig, allow: Sequence[str]) -> None:
    written: Any = OmegaConf.to_container(cfg)
    check_references(written)
    whole = copy.deepcopy(cfg)
    with open_dict(whole), read_write(whole):
        # Known while a job runs only.
        OmegaConf.update(whole, "hydra.runtime.output_dir", ".")
        OmegaConf.update(whole, "hydra.job.num", 0)
        OmegaConf.update(whole, "hydra.job.id", "0")
    tree: dict[str, Any] = {}
    for key in whole.hydra:
        # The texts of its help are no settings, and hold what cannot be resolved.
        value = None if key in ("help", "hydra_help") else whole.hydra[key]
        tree[str(key)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    check_hydra(tree, allow)


def _checked(cfg: DictConfig, varied: Sequence[str], allow: Sequence[str]) -> Job:
    names = _names(cfg)
    _say_missing(cfg, names)
    # A point estimate would not look at it.
    if cfg.draws != "auto" and not (type(cfg.draws) is int and cfg.draws > 0):
        raise ValueError(f"draws is {cfg.draws}: expected a whole number of at least 1.")
    job = _job(cfg, names, varied, allow)
    check(job.settings, allow)
    return job


def _job(cfg: DictConfig, names: dict[str, str], varied: Sequence[str], allow: Sequence[str]) -> Job:
    settings: Any = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    return Job(settings, names, list(varied), tuple(allow))


def _say_missing(cfg: DictConfig, names: dict[str, str]) -> None:
    weights = f"${{weights.{names['prior']}}}" if OmegaConf.is_missing(cfg.weights, names["prior"]) else None
    for group in (*GROUPS, "engine"):
        for name, value in leaves(OmegaConf.to_container(cfg[group]), group):
            if value is not None and value in ("???", weights):
                sweep = f", or for a sweep weights.{names['prior']}=FILE" if value == weights else ""
                raise ValueError(f"The setting {name} is missing: give {name}=VALUE{sweep}.")


def _names(cfg: DictConfig) -> dict[str, str]:
    """The choice of each group; of what was written in place of one the last word of its target."""
    chosen = cfg.hydra.runtime.choices
    names = {}
    for group in GROUPS:
        own = str(OmegaConf.select(cfg, f"{group}._target_", default="none")).rpartition(".")[2].lower()
        names[group] = str(chosen.get(group) or own)
    return names


_MEANINGS = (
    "Means over the images; of point estimates CRPS is the mean absolute error, and chi2 is in figures.csv alone. "
    "s: seconds an image, all its draws."
)


def _cell(value: float, places: int | None) -> str:
    """With so many digits behind the point, or two significant ones."""
    if places is None:
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    return f"{value:.{places}f}"


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _run(hydra: Hydra, master: DictConfig, planned: Sequence[Planned], allow: Sequence[str]) -> int:
    jobs = _apart(planned)
    missing = {job.key: own for own, job in planned if not current(job)}
    if len(jobs) > len(missing):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done already, in {master.out}.", flush=True)
    for key, job in jobs.items():
        if key not in missing and job.settings["protocol"]:
            _say_differences(job)
    note = {key: f"[{number}/{len(missing)}] " for number, key in enumerate(missing, 1)}
    single = len(planned) == 1 and not planned[0][0]
    if missing and single:
        run(next(iter(jobs.values())))
    elif missing:
        Path(master.out).mkdir(parents=True, exist_ok=True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master))
        task = partial(run_job, allow=tuple(allow), note=note, jobs=jobs)
        launcher = Plugins.instance().instantiate_launcher(context, task, master)
        try:
            launcher.launch(list(missing.values()), initial_job_idx=0)
        except Exception as error:
            # Jobs raise nothing: this is a process of the launcher that was ended, and others may still run.
            print(f"The launcher stopped: {type(error).__name__}: {sentence(error)}", flush=True)
    states = {key: state(job) for key, job in jobs.items()}
    _print(jobs, states)
    worst = {found.status for found in states.values()}
    return 0 if worst <= {"done", "not applicable"} and "done" in worst else 1


def _apart(planned: Sequence[Planned]) -> dict[str, Job]:
    """The jobs by their keys, the same settings twice once.

    Raises:
        ValueError: two differ in nothing that changes a figure, but in how or where they would run.
    """
    jobs: dict[str, Job] = {}
    for _, job in planned:
        other = jobs.setdefault(job.key, job)
        # Of the weights a job has those of its prior alone, and these are in its key.
        odd = [name for name in FREE if name != "weights" and job.settings.get(name) != other.settings.get(name)]
        if odd:
            raise ValueError(
                f"{other.title} and {job.title} differ in {odd[0]} alone, which makes no other job: give {odd[0]} one "
                "value in a sweep."
            )
    return jobs


def _say_differences(job: Job) -> None:
    """Of a job that was done before, perhaps without a protocol or with another."""
    name = job.settings["protocol"]
    for said in protocols.differences(protocols.read(name), protocols.read(f"{job.folder}/protocol.yaml")):
        print(f"{job.title} differs from the protocol {name}: {said}", flush=True)


def _print(jobs: dict[str, Job], states: dict[str, State]) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = ("PSNR", "draw", "SSIM", "CRPS", "90 %", "chi2", "NFE", "s")
    columns = ("psnr_mean", "psnr_draw", "ssim_mean", "crps", "coverage90", "chi2", "nfe", "seconds")
    digits = (2, 2, 3, 4, 2, 2, 0, None)
    usual = ("operator", "prior", "solver")
    groups = [group for group in TITLE if group in usual or len({job.names[group] for job in jobs.values()}) > 1]
    table = Table(box=None, pad_edge=False)
    for head in (*groups, *heads):
        table.add_column(head, justify="left" if head in groups else "right", no_wrap=True)
    for key, found in states.items():
        cells = []
        for column, places in zip(columns, digits, strict=True):
            # Of a point estimate no value of chi2 is right.
            rows = [row for row in found.rows if column != "chi2" or row["label"] != "point estimate"]
            values = [float(row[column]) for row in rows if row[column]]
            cells.append(_cell(sum(values) / len(values), places) if values else "-")
        *chosen, solver = (jobs[key].names[group] for group in groups)
        table.add_row(*chosen, " ".join([solver, *jobs[key].varied]), *cells)
    console = Console(soft_wrap=True, highlight=False, markup=False, width=160)
    if any(found.rows for found in states.values()):
        console.print(table)
        console.print(_MEANINGS)
    for key, found in states.items():
        # A single job has said it as it ran.
        if found.status != "done" and (len(jobs) > 1 or not found.sentence):
            said = found.sentence or "it left nothing: it was interrupted, or its process was ended."
            console.print(f"{jobs[key].title}: {found.status}: {said}")
    console.print(f"written to {next(iter(jobs.values())).settings['out']}")


if __name__ == "__main__":
    # Under its own name, by which the processes of a launcher find it.
    from invdiff.experiments.run import main as own_main

    sys.exit(own_main())
