"""Check a solver against exact posteriors: `check(solver)` runs it on the laboratory and says what it is worth.

The command line does the same: `invdiff check ddrm`, `invdiff check mymodule:MySolver --out report`.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import numbers
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor

from ..options import nearest
from ..posterior import Posterior
from ..provenance import embed, figure
from ..random import MemberRandom
from ..record import describe, environment
from ..report import output_folder, write_json
from ..sampling import sample
from ..solvers.base import CapabilityError, Solver
from .loading import load, sentence
from .measure import Exact, mode
from .pictures import Shown, picture, show
from .problems import FAMILIES, Problem, problems
from .verdict import DISTANCES, FIGURES, Outcome, judge, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DRAWS", "QUICK", "Report", "check", "load", "names", "run", "select"]

# The fixed subset: one problem of each kind, small enough that a solver of 1,000 steps is through in minutes.
QUICK = (
    *(f"gaussian/16x16 gray {operator} 0.05/0" for operator in ("inpaint", "blur", "down4", "denoise", "reflect")),
    *("mixture25/d=8 dy=1/0", "mixture25/d=8 dy=4/0", "mixture16/A1 0.2/0", "mixture16/A2 0.2/0"),
    *("nonlinear/phase 0.1/0", "nonlinear/clip 0.1/0"),
)
# What its family's name stands for beside them: its denoiser is Gibbs sampling, too slow to be run unasked.
_SLOW = ("heavy/laplace denoise/0",)
_FAMILIES = {
    "gaussian": "images of power 1/f^2: missing pixels, blur, reduction, gray, noise; one mode, known in closed form",
    "mixture25": "25 modes on a grid in 8 to 800 dimensions, of which 1, 2 or 4 are measured",
    "mixture16": "two modes in 2 of 16 dimensions, measured (A2) or not (A1)",
    "heavy": "walks of 64 Laplace or Student increments: heavy tails, by Gibbs sampling",
    "nonlinear": "phase retrieval and clipping of a mixture of Gaussians in 2 dimensions, by a grid",
}
DRAWS = 512
# Below this many draws a 95 % interval does not exist, and the floor hides everything.
_LEAST = 39
_ROWS = 12


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        solver: name and settings of the solver, as `invdiff.record.describe` gives them.
        outcomes: one for each problem that was run, in order.
        shown: what the picture shows of each problem that ran, by its name.
        wanted: how many problems were asked for; more than there are outcomes after Ctrl-C.
    """

    solver: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    shown: dict[str, Shown] = field(repr=False)
    wanted: int

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it before the last problem."""
        return len(self.outcomes) < self.wanted

    @property
    def verdict(self) -> str:
        """The verdict over all problems, in words."""
        return overall(self.outcomes)

    def lines(self) -> list[str]:
        """One line for each problem: its name and the verdict on it."""
        return [f"{outcome.problem}: {outcome.words}" for outcome in self.outcomes]

    def __str__(self) -> str:
        return "\n".join([*self.lines(), "", self.verdict])

    def rows(self) -> list[dict[str, Any]]:
        """One row for each problem: its figures, what exact draws give (NAME_floor), and intervals of distances."""
        out = []
        for o in self.outcomes:
            row: dict[str, Any] = {"problem": o.problem, "family": o.family, "grade": o.grade, "mode": o.mode}
            row |= {"draws": o.draws, "nfe": o.nfe, "nfe_backward": o.nfe_backward, "seconds": round(o.seconds, 2)}
            for name in FIGURES:
                row[name] = o.figures.get(name, math.nan)
                row[f"{name}_floor"] = o.floor.typical.get(name, math.nan) if o.floor is not None else math.nan
                if name in DISTANCES:
                    row[f"{name}_low"], row[f"{name}_high"] = o.intervals.get(name, (math.nan, math.nan))
            out.append(row | {"verdict": o.words})
        return out

    def picture(self) -> Figure:
        """Marginals of exact against sampled draws, and coverage curves; at most 12 problems, spread over all that ran.

        Raises:
            ValueError: if the solver ran on no problem.
        """
        ran = [outcome for outcome in self.outcomes if outcome.problem in self.shown]
        step = max(1, math.ceil(len(ran) / _ROWS))
        some = f", {len(ran[::step])} of {len(ran)} problems" if step > 1 else ""
        return picture(ran[::step], self.shown, f"{self.solver['name']} against exact posteriors{some}")

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write check.csv, verdict.txt, check.png (where anything ran) and record.json into a folder.

        Raises:
            OSError: the folder is a file, is not empty without `overwrite`, or cannot be written.
        """
        folder = Path(folder)
        if not overwrite and folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(f"The folder {folder} is not empty: choose another, or give overwrite=True.")
        with output_folder(folder, overwrite=overwrite) as stage:
            self.write(stage, {"written_by": "invdiff.exact.check"})

    def write(self, folder: Path, record: dict[str, Any]) -> None:
        """The files of `save` in a folder that is there, with the record added to what record.json holds."""
        rows = self.rows()
        with (folder / "check.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0].keys() if rows else ["problem"], lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        (folder / "verdict.txt").write_text(f"{self}\n", encoding="utf-8")
        if self.shown:
            self.picture().savefig(folder / "check.png")
            embed(folder / "check.png", figure("what exact posteriors say of a solver"))
        done = {"finished": len(self.outcomes), "wanted": self.wanted, "interrupted": self.interrupted}
        machine = environment(torch.device("cpu"))
        write_json(folder / "record.json", record | {"solver": self.solver, **done, "environment": machine})


def check(
    solver: Solver,
    chosen: str | Sequence[str] = (),
    *,
    full: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Run a solver on problems whose posterior is known exactly, and say whether its spread can be used.

    Every problem has the exact denoiser, so that what is wrong is the solver's doing. A problem that the solver
    refuses (CapabilityError) does not apply; one on which it fails is reported as failed, and the others are run.
    Ctrl-C keeps what is finished.

    Args:
        solver: of `invdiff.solvers`, or any object with `stochastic` and `iterate`.
        chosen: problems, cells of them or families, or one of these; all of QUICK where left out.
        full: every problem of the laboratory, or of the families named, and not QUICK alone.
        draws: of each problem, from 39 on; point estimates take 1.
        seed: of the draws, from 0 on.
        progress: show a bar on a terminal, and elsewhere a line on stderr for each problem that is finished.

    Raises:
        TypeError: if the solver has no `iterate`.
        ValueError: for a name that no problem, no cell and no family has, too few draws or a negative seed.
    """
    if isinstance(solver, type) or not isinstance(solver, Solver):
        kind = solver.__name__ if isinstance(solver, type) else type(solver).__name__
        raise TypeError(f"{kind} is no solver: expected an object with `stochastic` and `iterate`, such as DDRM().")
    if isinstance(draws, bool) or not isinstance(draws, numbers.Integral) or draws < _LEAST:
        raise ValueError(f"draws is {draws!r}: expected a whole number from {_LEAST} on, so that intervals exist.")
    MemberRandom(seed, [])
    found = select(chosen, full=full)
    outcomes: list[Outcome] = []
    shown: dict[str, Shown] = {}
    with _bar(solver, [problem.name for problem in found], progress) as (on_step, advance):
        for problem in found:
            try:
                outcome, what = examine(solver, problem, int(draws), seed, on_step)
            except KeyboardInterrupt:
                break
            outcomes.append(outcome)
            if what is not None:
                shown[problem.name] = what
            advance(outcome)
    return Report(describe(solver), tuple(outcomes), shown, len(found))


def names() -> dict[str, str]:
    """The families of problems, with one line each."""
    return {family: _FAMILIES[family] for family in FAMILIES}


def select(chosen: str | Sequence[str], *, full: bool = False) -> list[Problem]:
    """The problems of those names in the order of the laboratory; a family stands for a few of it unless full.

    Args:
        chosen: problems, cells of them or families, or one of these; QUICK where left out.
        full: all problems, and all of each family.

    Raises:
        ValueError: for a name that no problem, no cell and no family has.
    """
    wanted = {chosen} if isinstance(chosen, str) else set(chosen or FAMILIES)
    found: list[Problem] = []
    known: list[str] = list(FAMILIES)
    for family in FAMILIES:
        few = {name for name in ((*QUICK, *_SLOW) if chosen else QUICK) if name.startswith(f"{family}/")}
        targets = {name for name in wanted if name.startswith(f"{family}/")} | (few if family in wanted else set())
        missing = targets | ({"all"} if full and family in wanted else set())
        for problem in problems(family):
            # Made one after the other: what comes after the last one asked for is not made.
            if not missing:
                break
            known.append(problem.name)
            if {problem.name, problem.cell} & targets or (full and family in wanted):
                found.append(problem)
                missing.discard(problem.name)
    hit = {name for problem in found for name in (problem.name, problem.cell)}
    for name in wanted - hit - {*FAMILIES}:
        raise ValueError(f"There is no problem {name!r}{nearest(name, known)}")
    return found


def examine(
    solver: Solver, problem: Problem, draws: int, seed: int, on_step: Callable[[int, Tensor], None]
) -> tuple[Outcome, Shown | None]:
    """One problem: run the solver, and judge its draws.

    Raises:
        KeyboardInterrupt: at Ctrl-C, also after some of the draws.
    """
    try:
        posterior = run(solver, problem, draws, seed, on_step)
    except CapabilityError as error:
        return Outcome(problem.name, problem.family, "refused", f"does not apply: {error}"), None
    except Exception as error:  # a class of the user's may raise anything; the other problems still tell something
        return Outcome(problem.name, problem.family, "failed", f"failed: {sentence(error)}"), None
    if posterior.record["interrupted"]:
        raise KeyboardInterrupt
    exact = Exact(problem, len(posterior))
    measured = exact.figures(posterior.draws)
    record = posterior.record
    common: dict[str, Any] = {"mode": mode(posterior), "draws": len(posterior), "figures": measured}
    common |= {"floor": exact.floor, "nfe": record["nfe"], "nfe_backward": record["nfe_backward"]}
    common |= {"seconds": record["seconds"]}
    if not posterior.point and not record["dependent"]:
        common["intervals"] = exact.intervals(posterior.draws)
    grade, words = judge(measured, exact.floor, exact.noun)
    shown = show(posterior.draws, exact.sets, exact.reference)
    return Outcome(problem.name, problem.family, grade, words, **common), shown


def run(
    solver: Solver,
    problem: Problem,
    draws: int,
    seed: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Posterior:
    """Draw from the posterior of a problem, from its highest noise level on where the solver leaves that open.

    Every problem has random numbers of its own, so that the errors on two of them are independent.

    Raises:
        FloatingPointError: if a draw is not finite: the others alone would not be the solver's.
    """
    if "sigma_max" in vars(solver) and vars(solver)["sigma_max"] is None and dataclasses.is_dataclass(solver):
        solver = dataclasses.replace(solver, sigma_max=problem.sigma_max)  # type: ignore[type-var]
    particles = getattr(solver, "particles", None) or 1
    count = draws if solver.stochastic else 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Interrupted")  # whoever called says it
        warnings.filterwarnings("ignore", message=".*are not finite")  # the error below says it
        posterior = sample(
            solver,
            problem.likelihood,
            problem.prior,
            draws=count,
            seed=crc32(f"{problem.name} {seed}".encode()),
            micro_batch=max(1, min(count, 1024 // particles)),
            on_step=on_step,
            progress=False,
        )
    failed = posterior.record["failed"]
    if failed:
        raise FloatingPointError(f"{len(failed)} of {len(posterior)} draws are not finite")
    return posterior


@contextmanager
def _bar(
    solver: Solver, names: Sequence[str], wanted: bool
) -> Iterator[tuple[Callable[[int, Tensor], None], Callable[[Outcome], None]]]:
    """What every step and every finished problem calls: a bar on a terminal, a line for each problem elsewhere."""
    done = 0
    if not wanted or not sys.stderr.isatty():

        def say(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            if wanted:
                took = f", {outcome.seconds:.1f} s" if outcome.ran else ""
                print(f"{done} of {len(names)}: {outcome.problem}, {outcome.grade}{took}", file=sys.stderr, flush=True)

        yield lambda step, x: None, say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(type(solver).__name__),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[problem]}, step {task.fields[step]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(names), problem=names[0] if names else "", step=0)

        def step(number: int, x: Tensor) -> None:
            bar.update(task, step=number)

        def advance(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=1, problem=names[min(done, len(names) - 1)], step=0)

        yield step, advance
