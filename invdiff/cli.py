"""The command line: what the commands take, and what becomes of what goes wrong in them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import commands
from .cli_images import degrade, restore
from .flags import Alpha, DataRange, Overwrite, Seed, option, takes_operator

__all__ = ["app", "main"]

app = typer.Typer(
    name="invdiff",
    help="Restore images through a known degradation, and say how sure the result is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(restore)
app.command()(degrade)


@app.command()
def check(
    context: typer.Context,
    solver: Annotated[str, typer.Argument(help="A solver of `invdiff list`, or module:Class of your own.")],
    problem: Annotated[
        list[str] | None,
        option(
            "--prior-problem",
            help="A family of `invdiff list`, or a cell or problem of `invdiff list --problems FAMILY`; repeats.",
        ),
    ] = None,
    full: Annotated[bool, option("--full", help="All problems, not the quick subset: hours.")] = False,
    out: Annotated[Path | None, option("--out", help="Folder for table, verdict and picture; made here.")] = None,
    settings: Annotated[
        list[str] | None, option("--set", help="A setting of the solver, such as solver.steps=20; may be repeated.")
    ] = None,
    draws: Annotated[int, option("--draws", help="Number of draws for each problem, from 39 on.")] = 512,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Check a solver where the posterior is known exactly: can its spread be used as an error bar?"""
    from .exact.command import check as run

    run(
        solver,
        names=problem or [],
        full=full,
        draws=draws,
        seed=seed,
        settings=settings or [],
        out=out,
        overwrite=overwrite,
        command=context.obj,
    )


@app.command()
def compare(
    sweep: Annotated[Path, typer.Argument(help="The folder that the sweep of experiments was written to.")],
    out: Annotated[
        Path | None, option("--out", help="Folder for tables and plots; compare in the sweep's own if left out.")
    ] = None,
    reference: Annotated[
        str | None,
        option("--reference", help="Compare with this prior, solver, or PRIOR/SOLVER; else with the best in PSNR."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare the finished jobs of a sweep: tables, paired differences over images, and plots for a paper."""
    from .compare_tables import compare as run

    run(sweep, out=out, against=reference, overwrite=overwrite)


@app.command()
def calibrate(
    runs: Annotated[list[str], typer.Argument(help="Folders of --store that keep their truth, one image each.")],
    out: Annotated[Path, option("--out", help="File of the calibrator, JSON.")] = Path("calibrator.json"),
    level: Annotated[float, option("--level", help="Of the intervals that the promise is about.")] = 0.9,
    delta: Annotated[
        float | None, option("--delta", help="rcps: chance that the promise does not hold (default 0.1).")
    ] = None,
    method: Annotated[
        str, option("--method", help="crc promises on average over calibrations, rcps with probability 1 - delta.")
    ] = "crc",
    overwrite: Annotated[bool, option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Calibrate the spread on RUNS whose truth is known, so that intervals hold on new images of the same kind."""
    from .calibrating import calibrate as run

    run(runs, out=out, level=level, delta=delta, method=method, overwrite=overwrite)


@app.command()
def provenance(
    picture: Annotated[Path, typer.Argument(help="PNG, JPEG or TIFF.")],
    trust: Annotated[Path | None, option("--trust", help="PEM file of certificates that you trust.")] = None,
) -> None:
    """Print what PICTURE says of how it was made, and whether it is as it was signed."""
    from .signing import lines

    for line in lines(picture, trust=trust):
        print(line)


# Hydra's own grammar: everything is passed on as it is, --help too.
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def experiment(context: typer.Context) -> None:
    """Run an experiment, or a sweep over priors and solvers (-m): NAME=VALUE ...; see `invdiff experiment --help`."""
    from .experiments.run import main as run

    # Not returned: 130 would be taken for a Ctrl-C of which nothing was said yet.
    raise SystemExit(run(context.args))


@app.command()
@takes_operator
def report(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of --store, results of restore, or a posterior.safetensors.")],
    out: Annotated[Path, option("--out", help="The page.")] = Path("report.html"),
    measurement: Annotated[
        Path | None, option("--measurement", help="The measurement, where the run keeps none.")
    ] = None,
    truth: Annotated[Path | None, option("--truth", help="The clean image, where the run keeps none.")] = None,
    operator: Annotated[
        str | None, option("--operator", help="The operator, where it cannot be built from what the run keeps.")
    ] = None,
    sigma: Annotated[float | None, option("--sigma", help="Noise level, where the run does not say it.")] = None,
    calibrator: Annotated[Path | None, option("--calibrator", help="File of a calibrator of the spread.")] = None,
    anyway: Annotated[
        bool, option("--anyway", help="Take a calibrator of other settings too, which promises nothing here.")
    ] = False,
    title: Annotated[str | None, option("--title", help="Of the page; the name of the run if left out.")] = None,
    number: Annotated[int, option("--number", help="Which one of several measurements, from 0 on.")] = 0,
    overwrite: Annotated[bool, option("--overwrite", help="Replace a page that is there.")] = False,
    alpha: Alpha = "refuse",
    data_range: DataRange = None,
    *,
    operator_options: dict[str, Any],
) -> None:
    """Write one HTML page of a RUN: pictures, draws, what they are worth and what was invented, in one file."""
    from .html.command import report as write

    own = ("out", "measurement", "truth", "operator", "sigma", "calibrator", "anyway", "title", "number", "overwrite")
    given = {name: context.params[name] for name in (*own, "alpha", "data_range")}
    write(run, **given, operator_options=operator_options)


@app.command()
def cite(
    names: Annotated[list[str] | None, typer.Argument(help="Solvers and priors of `invdiff list`.")] = None,
) -> None:
    """Print the BibTeX of the papers behind solvers and priors; without a name, list what each cites."""
    from .cite import bibtex, listing

    print(bibtex(names) if names else listing())


@app.command("list")
def list_names(
    families: Annotated[
        list[str] | None,
        option("--problems", help="The problems of check in this family instead; may be repeated."),
    ] = None,
) -> None:
    """List operators, priors, solvers and the families of problems of check with one line each."""
    commands.list_names(families or [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when it went well, 2 for bad input, 130 after Ctrl-C, 1 when a computation failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        try:
            code = app(args=arguments or ["--help"], prog_name="invdiff", standalone_mode=False, obj=arguments)
            if code == 130:  # how Typer passes Ctrl-C on
                raise KeyboardInterrupt
            return code if isinstance(code, int) else 0
        except SystemExit as ended:
            return int(ended.code or 0)
        except commands.Interrupted as interruption:
            return _say(f"Interrupted: {interruption}", 130)
        except KeyboardInterrupt:
            return _say("Interrupted: nothing was written.", 130)
        except (TypeError, ValueError, OSError, ImportError) as error:
            return _say(_sentence(error), 2)
        except (FloatingPointError, MemoryError) as error:
            return _say(_sentence(error), 1)
        except Exception as error:
            if hasattr(error, "format_message"):  # how Typer reports a wrong command line
                return _say(f"{error.format_message().rstrip('.')}; see `invdiff --help`.", 2)
            if type(error).__name__ == "Abort":
                return _say("Interrupted: nothing was written.", 130)
            if type(error).__name__ == "OutOfMemoryError":
                return _say("The device is out of memory: use --micro-batch 1, or --device cpu.", 1)
            raise


def _say(sentence: str, code: int) -> int:
    print(f"invdiff: {sentence}", file=sys.stderr)
    return code


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"invdiff: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
