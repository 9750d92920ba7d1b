"""Experiments that compare priors: `invdiff experiment ...`, or `python -m invdiff.experiments.run ...`.

One job, or with `-m` a sweep over several, one after another or on a cluster. Each job has a folder in `out`; started
again, a sweep runs what is missing. `experiments/conf/run.yaml` says what the settings are, `docs/experiments.md` how
to use them.
"""

from __future__ import annotations

import argparse
import copy
import re
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
from .hydra_tree import check_hydra, check_references, check_search_path
from .jobs import GROUPS, TITLE, Job, State, current, run, state

__all__ = ["compose", "main", "run_job"]

CONF = Path(__file__).with_name("conf")
# What `compose` gives for one job: its overrides and what it is.
Planned = tuple[list[str], Job]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; 0 when it went well, 1 when a job failed, 2 for bad input, 130 after Ctrl-C."""
    arguments = _parser().parse_intermixed_args(sys.argv[1:] if argv is None else list(argv))
    try:
        with _hydra(arguments) as hydra:
            master, many = _compose(hydra, arguments)
            if arguments.cfg:
                print(OmegaConf.to_yaml(_without_hydra(master)), end="")
                return 0
            planned = _plan(hydra, master, many, arguments.allow)
            return _run(hydra, master, planned, arguments.allow)
    except KeyboardInterrupt:
        print(
            "invdiff: Interrupted: the jobs that are done are kept; the same line goes on with the rest.",
            file=sys.stderr,
        )
        return 130
    except (HydraException, OmegaConfBaseException, ValueError, OSError, ImportError) as error:
        print(f"invdiff: {_sentence(error)}", file=sys.stderr)
        return 2


def compose(overrides: Sequence[str], *, allow: Sequence[str] = ()) -> list[Job]:
    """The jobs of these overrides, as of the command line, checked and not run.

    >>> [job.names["prior"] for job in compose(["-m", "prior=tv,wavelet", "solver=ddrm"])]
    ['tv', 'wavelet']
    """
    arguments = _parser().parse_intermixed_args(list(overrides))
    arguments.allow += allow
    with _hydra(arguments) as hydra:
        master, many = _compose(hydra, arguments)
        return [job for _, job in _plan(hydra, master, many, arguments.allow)]


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
    parser.add_argument("--cfg", action="store_true", help="print the settings, and run nothing")
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
    parser = OverridesParser.create()
    for override in parser.parse_overrides(arguments.overrides):
        if override.key_or_group in ("hydra.searchpath", "hydra"):
            value = override.value()
            check_search_path(value.get("searchpath", []) if isinstance(value, dict) else value, arguments.allow)


def _compose(hydra: Hydra, arguments: argparse.Namespace) -> tuple[DictConfig, bool]:
    """The configuration that the jobs differ from, and whether there are several; what is Hydra's is checked."""
    name, overrides = arguments.config_name, arguments.overrides
    many = arguments.multirun or hydra.get_mode(name, overrides) == RunMode.MULTIRUN
    mode = RunMode.MULTIRUN if many else RunMode.RUN
    master = hydra.compose_config(name, overrides, mode, from_shell=False)
    _check_tree(master, arguments.allow)
    return master, many


def _plan(hydra: Hydra, master: DictConfig, many: bool, allow: Sequence[str]) -> list[Planned]:
    """Every job, all checked."""
    if not many:
        return [([], _checked(master, [], allow))]
    sweeper, task = master.hydra.sweeper, master.hydra.overrides.task
    swept = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides([*swept, *map(str, task)]), None)
    common = set(batch[0]).intersection(*batch)
    planned = []
    for own in batch:
        cfg = hydra.config_loader.load_sweep_config(master, list(own))
        _check_tree(cfg, allow)
        varied = [word for word in own if word not in common and word.partition("=")[0] not in TITLE]
        planned.append((list(own), _checked(cfg, varied, allow)))
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
        for name, value in _leaves(OmegaConf.to_container(cfg[group]), group):
            if value is not None and value in ("???", weights):
                sweep = f", or for a sweep weights.{names['prior']}=FILE" if value == weights else ""
                raise ValueError(f"The setting {name} is missing: give {name}=VALUE{sweep}.")


def _leaves(tree: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{place}.{key}")
    else:
        yield place, tree


def _names(cfg: DictConfig) -> dict[str, str]:
    """The choice of each group; of what was written in place of one the last word of its target."""
    chosen = cfg.hydra.runtime.choices
    names = {}
    for group in GROUPS:
        own = str(OmegaConf.select(cfg, f"{group}._target_", default="none")).rpartition(".")[2].lower()
        names[group] = str(chosen.get(group) or own)
    return names


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _run(hydra: Hydra, master: DictConfig, planned: Sequence[Planned], allow: Sequence[str]) -> int:
    jobs = {job.key: job for _, job in planned}
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
            print(f"The launcher stopped: {type(error).__name__}: {_sentence(error)}", flush=True)
    states = {key: state(job) for key, job in jobs.items()}
    _print(jobs, states)
    worst = {found.status for found in states.values()}
    return 0 if worst <= {"done", "not applicable"} and "done" in worst else 1


def _say_differences(job: Job) -> None:
    """Of a job that was done before, perhaps without a protocol or with another."""
    name = job.settings["protocol"]
    for sentence in protocols.differences(protocols.read(name), protocols.read(f"{job.folder}/protocol.yaml")):
        print(f"{job.title} differs from the protocol {name}: {sentence}", flush=True)


def _print(jobs: dict[str, Job], states: dict[str, State]) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = ("PSNR", "draw", "SSIM", "CRPS", "90 %", "chi2", "NFE", "s")
    columns = ("psnr_mean", "psnr_draw", "ssim_mean", "crps", "coverage90", "chi2", "nfe", "seconds")
    digits = (2, 2, 3, 4, 2, 2, 0, 1)
    usual = ("operator", "prior", "solver")
    groups = [group for group in TITLE if group in usual or len({job.names[group] for job in jobs.values()}) > 1]
    table = Table(box=None, pad_edge=False)
    for head in (*groups, *heads):
        table.add_column(head, justify="left" if head in groups else "right", no_wrap=True)
    for key, found in states.items():
        cells = []
        for column, places in zip(columns, digits, strict=True):
            values = [float(row[column]) for row in found.rows if row[column]]
            cells.append(f"{sum(values) / len(values):.{places}f}" if values else "-")
        *chosen, solver = (jobs[key].names[group] for group in groups)
        table.add_row(*chosen, " ".join([solver, *jobs[key].varied]), *cells)
    console = Console(soft_wrap=True, highlight=False, markup=False, width=160)
    if any(found.rows for found in states.values()):
        console.print(table)
        console.print("Means over the images; of point estimates CRPS is the mean absolute error. s: seconds an image.")
    for key, found in states.items():
        if found.status != "done":
            said = found.sentence or "it left nothing: it was interrupted, or its process was ended."
            console.print(f"{jobs[key].title}: {found.status}: {said}")
    console.print(f"written to {next(iter(jobs.values())).settings['out']}")


def _sentence(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, HydraException):
        return said
    if unknown := re.match(r"Could not override '([^']+)'", said):
        # Hydra's advice, to add it with a plus, leads to the next refusal.
        return f"There is no setting {unknown[1]} with what was chosen, or not with all of it: --cfg prints all."
    # What follows are folders of Hydra's and ours.
    return said.partition(" Config search path:")[0]


if __name__ == "__main__":
    # Under its own name, by which the processes of a launcher find it.
    from invdiff.experiments.run import main as own_main

    sys.exit(own_main())
