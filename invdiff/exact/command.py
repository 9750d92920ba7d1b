"""What `invdiff check` does: run a solver against exact posteriors, print what it is worth, write it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ..commands import Interrupted, command_line, parse_settings
from ..report import output_folder
from .check import Report, load
from .check import check as run

__all__ = ["check"]


def check(
    solver: str,
    *,
    names: Sequence[str],
    full: bool,
    draws: int,
    seed: int,
    settings: Sequence[str],
    out: Path | None,
    overwrite: bool,
    command: Sequence[str],
) -> None:
    """Run a solver against exact posteriors and print what it is worth; see `invdiff.exact.check`."""
    own = parse_settings(settings)
    if own["prior"]:
        name = next(iter(own["prior"]))
        raise ValueError(f"The setting prior.{name} is given: check takes the exact priors, which have no settings.")
    chosen = load(solver, **own["solver"])
    with nullcontext() if out is None else output_folder(out, overwrite=overwrite) as stage:
        report = run(chosen, names, full=full, draws=draws, seed=seed)
        if not report.outcomes:
            raise KeyboardInterrupt
        if stage is not None:
            report.write(stage, {"written_by": "invdiff check", "command": command_line(command), "seed": seed})
    _print_check(report)
    if out is not None:
        print(f"written to {out}")
    if report.interrupted:
        kept = "" if out is None else f", and written to {out}"
        raise Interrupted(f"{len(report.outcomes)} of {report.wanted} problems are finished{kept}.")


def _print_check(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    heads = ("problem", "mean", "std", "SW2 (exact)", "90 %", "modes", "chi2", "NFE", "s", "draws")
    for head in heads:
        table.add_column(head, justify="left" if head == "problem" else "right", no_wrap=True)
    for o in report.outcomes:
        if not o.ran:
            table.add_row(o.problem, "failed" if o.grade == "failed" else "-")
            continue
        f, floor = o.figures, o.floor.typical if o.floor is not None else {}
        pairs = [_cell(f["mean_observed"], f["mean_null"]), _cell(f["spread_observed"], f["spread_null"])]
        between = ", ".join(f"{end:.2f}" for end in o.intervals.get("sw2", ()))
        distance = f"{_cell(f['sw2'])}{f' [{between}]' if between else ''} ({_cell(floor.get('sw2', math.nan))})"
        rest = [_cell(f["coverage90"]), _cell(f["weights_tv"]), _cell(f["chi2"])]
        calls = f"{o.nfe}" + (f" + {o.nfe_backward}" if o.nfe_backward else "")
        table.add_row(o.problem, *pairs, distance, *rest, calls, f"{o.seconds:.1f}", f"{o.draws} {o.mode}")
    console = Console(soft_wrap=True, highlight=False, markup=False, width=160)
    console.print(table)
    console.print(
        "mean: its error in posterior stds, std: over the posterior's, both where the operator sees / does not see; "
        "SW2: distance to exact draws [its 95 % interval] (that of exact draws); 90 %: true coverage of those "
        "intervals; modes: error of their weights; NFE: denoiser calls a draw + passes back.\n"
    )
    for text in report.lines():
        console.print(text)
    console.print(f"\n{report.solver['name']}: {report.verdict}")


def _cell(*values: float) -> str:
    """The values that exist, with two digits and slashes between them."""
    found = [f"{value:.2f}" for value in values if not math.isnan(value)]
    return " / ".join(found) or "-"
