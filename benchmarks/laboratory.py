"""The whole laboratory: `python -m benchmarks.posterior --all`.

Every solver that draws, with its defaults, on every problem of `invdiff.exact` (families gaussian, mixture25,
mixture16, heavy, nonlinear), against the exact posterior. One row per (problem, solver, mode) goes into
results/laboratory_FAMILY.csv as soon as it is there, so that a run can be stopped at any time; --resume goes on and
skips the rows that stand. The mode says how draws of clouds of particles hang together: solvers with clouds run twice,
with one independent draw of each cloud, and with all particles of each ("--modes" chooses).

The figures are those of `invdiff.exact.verdict.FIGURES`, the mean squared errors of the draws' mean and of the exact
one (their ratio is the gap to the MMSE estimate), and for mixture16 the kernel Stein discrepancy, which gates nothing.
The solver "exact" is a set of exact draws of the same size, which is the floor of each figure, paired with the others
as it belongs to the same problem. NFE and operator calls are those that one returned draw costs, a batch counting once.
With --quantile 200 every problem of the family gaussian also has a row "exact 97.5 %": what that share of 200 sets of
exact draws stays under, of the errors of the mean and the sliced distances. `python -m benchmarks.summary` makes tables
of it, and says in how many problems a solver stays under it too.
"""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff import Posterior, solvers
from invdiff.exact.check import run
from invdiff.exact.figures import stein_discrepancy
from invdiff.exact.measure import Exact
from invdiff.exact.problems import FAMILIES, Problem, problems
from invdiff.exact.verdict import FIGURES
from invdiff.solvers import CapabilityError, Solver

from .counting import counting
from .quantiles import QUANTILE, quantiles

RESULTS = Path(__file__).parent / "results"
DRAWS = {"gaussian": 256, "mixture25": 2000, "mixture16": 500, "heavy": 256, "nonlinear": 1000}
MODES = ("independent", "cloud")
COLUMNS = (
    *("family", "cell", "problem", "solver", "mode", "status", "draws", "nfe", "nfe_backward"),
    *("operator_calls", "seconds", *FIGURES, "mse", "mse_exact", "ksd"),
)
Row = dict[str, Any]


def names() -> list[str]:
    """Every solver that draws from a posterior."""
    found = {name: solvers.load(name) for name in solvers.names()}
    return [name for name, s in found.items() if s.stochastic and not isinstance(s, solvers.PriorSampler)]


def variants(name: str, modes: Sequence[str], settings: dict[str, Any]) -> Iterator[tuple[str, str, Solver]]:
    """(label, mode, solver): with one draw of each cloud, and, where the solver has clouds, with all particles.

    Args:
        name: of the solver.
        modes: of MODES.
        settings: for those solvers that have them; the label says which, and the mode how many particles.
    """
    plain = solvers.load(name)
    known = {field.name for field in dataclasses.fields(plain)}  # type: ignore[arg-type]
    own = {key: value for key, value in settings.items() if key in known}
    label = name + "".join(f" {key}={value}" for key, value in own.items() if key not in ("keep", "particles"))
    clouds = "keep" in known
    for how in modes:
        if how == "cloud" and not clouds:
            continue
        solver = solvers.load(name, **own, **({"keep": "cloud" if how == "cloud" else "one"} if clouds else {}))
        particles = getattr(solver, "particles", 0)
        kept = f"{'all' if how == 'cloud' else 'one'} of {particles}" if clouds else "independent"
        yield label, kept, solver


def measured(problem: Problem, solver: Solver | None, exact: Exact) -> Row:
    """Figures and costs of one solver on one problem; None is a set of exact draws."""
    if solver is None:
        draws = exact.independent()
        costs: Row = {"status": "ok", "nfe": 0, "nfe_backward": 0, "operator_calls": 0.0, "seconds": 0.0}
        return costs | {"draws": len(draws)} | figures(exact, draws)
    operator, count = counting(problem.likelihood.operator)
    counted = dataclasses.replace(problem, likelihood=dataclasses.replace(problem.likelihood, operator=operator))
    clock = time.monotonic()
    try:
        posterior = run(solver, counted, exact.count)
    except CapabilityError as error:
        return {"status": f"does not apply: {error}"}
    except FloatingPointError as error:
        return {"status": f"failed: {error}"}
    if posterior.record["interrupted"]:
        raise KeyboardInterrupt
    seconds = time.monotonic() - clock
    record = posterior.record
    return {
        "status": "ok",
        "draws": len(posterior),
        "nfe": record["nfe"],
        "nfe_backward": record["nfe_backward"],
        "operator_calls": count.calls * share(posterior),
        "seconds": seconds,
    } | figures(exact, posterior.draws)


def figures(exact: Exact, draws: Tensor) -> Row:
    """Those of the verdicts, the error of the mean and that of the exact mean, and for mixture16 the score's KSD."""
    problem = exact.problem
    out: Row = dict(exact.figures(draws))
    out["mse"] = float((draws.double().mean(0) - problem.truth).square().mean())
    out["mse_exact"] = float((problem.posterior.mean - problem.truth).square().mean())
    out["ksd"] = stein_discrepancy(draws, problem) if problem.family == "mixture16" else math.nan
    return out


def share(posterior: Posterior) -> float:
    """What one returned draw costs of the calls on whole batches: as sample() counts network evaluations."""
    record = posterior.record
    cloud = record.get("cloud") or 1
    kept = cloud if record.get("dependent") else 1
    batches = math.ceil(math.ceil(record["draws"] / kept) / record["micro_batch"])
    return cloud / kept / batches


def standing(path: Path) -> set[tuple[str, str, str]]:
    """(problem, solver, mode) of the rows that stand; a last line cut short by an interruption is removed first."""
    if not path.exists():
        return set()
    text = path.read_text()
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open(newline="") as handle:
        return {(row["problem"], row["solver"], row["mode"]) for row in csv.DictReader(handle)}


def write(path: Path, row: Row) -> None:
    """Append a row, with the head where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def limited(every: Iterable[Problem], limit: int | None) -> Iterator[Problem]:
    """At most so many problems of each cell."""
    seen: dict[str, int] = {}
    for problem in every:
        seen[problem.cell] = seen.get(problem.cell, 0) + 1
        if limit is None or seen[problem.cell] <= limit:
            yield problem


def family(
    name: str,
    chosen: Sequence[str],
    out: Path,
    *,
    modes: Sequence[str] = MODES,
    settings: dict[str, Any] | None = None,
    limit: int | None = None,
    cells: str = "",
    draws: int | None = None,
    sets: int | None = None,
) -> None:
    """Run one family, appending to out what does not stand there yet; `sets` are those of the quantiles' rows."""
    done = standing(out)
    cases: list[tuple[str, str, Solver | None]] = [("exact", "independent", None)]
    if sets is not None and name == "gaussian":
        cases.append((QUANTILE, f"of {sets} sets", None))
    cases += [case for solver in chosen for case in variants(solver, modes, settings or {})]
    for problem in limited((p for p in problems(name) if cells in p.name), limit):
        open_cases = [case for case in cases if (problem.name, *case[:2]) not in done]
        if not open_cases:
            continue
        exact = Exact(problem, draws or DRAWS[name])
        for label, how, solver in open_cases:
            row: Row = {"family": name, "cell": problem.cell, "problem": problem.name, "solver": label, "mode": how}
            if label == QUANTILE and sets is not None:
                row |= {"status": "ok", "draws": exact.count} | quantiles(exact, sets)
            else:
                row |= measured(problem, solver, exact)
            write(out, row)
            print(line(row), flush=True)


def line(row: Row) -> str:
    """One row as text."""
    head = f"{row['problem']:<44}{row['solver']:<14}{row['mode']:<13}"
    if row["status"] != "ok":
        return head + row["status"]
    shown = ("mean_observed", "mean_null", "spread_observed", "spread_null", "sw1", "coverage90")
    values = [row.get(k, math.nan) for k in shown]
    figures = "".join(f"{value:8.3f}" if not math.isnan(value) else f"{'-':>8}" for value in values)
    return f"{head}{row.get('nfe', 0):>7}{figures}{row.get('seconds', 0.0):8.1f} s"


def setting(word: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a Python literal or a plain word."""
    name, equals, text = word.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{word!r}: expected NAME=VALUE, such as steps=20")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


def sets_of(word: str) -> int:
    """A number of sets, of which a quantile of 97.5 % can be taken."""
    if not word.isdecimal() or int(word) < 40:
        raise argparse.ArgumentTypeError(f"{word!r}: expected a whole number of sets from 40 on, such as 200")
    return int(word)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posterior --all", description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--solvers", nargs="*", default=names(), choices=names(), metavar="NAME")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES, help="of solvers with clouds")
    parser.add_argument("--set", nargs="*", default=[], type=setting, metavar="NAME=VALUE", help="for all that have it")
    parser.add_argument("--limit", type=int, help="most problems of each cell")
    parser.add_argument("--cells", default="", help="only problems whose name holds this")
    parser.add_argument("--draws", type=int, help="in place of the family's own number")
    parser.add_argument(
        "--quantile", type=sets_of, metavar="SETS", help="gaussian: rows of what so many exact sets give"
    )
    parser.add_argument("--resume", action="store_true", help="go on, skipping rows that stand in the CSV")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSVs")
    given = parser.parse_args(argv)
    for name in given.family:
        out = given.out / f"laboratory_{name}.csv"
        if out.exists() and not given.resume:
            parser.error(f"{out} stands already: add --resume to go on, or remove it to begin again")
    try:
        for name in given.family:
            family(
                name,
                given.solvers,
                given.out / f"laboratory_{name}.csv",
                modes=given.modes,
                settings=dict(given.set),
                limit=given.limit,
                cells=given.cells,
                draws=given.draws,
                sets=given.quantile,
            )
    except KeyboardInterrupt:
        print("\nInterrupted: the rows above are written; add --resume to go on.")
