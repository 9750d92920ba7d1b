"""The command line: `invdiff restore`, `degrade`, `check`, `compare`, `report` and `list`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import commands
from .montecarlo import parse_draws
from .options import OPTION_NAMES

__all__ = ["app", "main"]

app = typer.Typer(
    name="invdiff",
    help="Restore images through a known degradation, and say how sure the result is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, show_default=True)


Out = Annotated[Path, _option("--out", help="Folder for the results; made here.")]
Overwrite = Annotated[bool, _option("--overwrite", help="Replace results in a folder that is not empty.")]
Alpha = Annotated[str, _option("--alpha", help="refuse an alpha channel, or flatten it on white or black.")]
DataRange = Annotated[
    float | None, _option("--data-range", help="Value that stands for white (255, 65535, or 1 for float).")
]
Seed = Annotated[int, _option("--seed", help="Seed of draws and simulated noise, from 0 on.")]
Kind = Annotated[str, _option("--operator", help="blur, downsample, mask, gray, denoise or bayer.")]
Psf = Annotated[Path | None, _option("--psf", help="blur, downsample: PSF file (.npy, .mat or an image).")]
PsfKind = Annotated[
    str | None,
    _option("--psf-kind", help="Instead of a file: gaussian:1.5, disk:3, motion:9:30 or uniform:5 (pixels)."),
]
PsfIndex = Annotated[int | None, _option("--psf-index", help="Which PSF, from 0, of a file that holds several.")]
PsfKey = Annotated[str | None, _option("--psf-key", help="Which variable of a .mat file that holds several.")]
Boundary = Annotated[
    str | None,
    _option("--boundary", help="blur: valid for a photograph; circular (default), reflect, replicate or zero."),
]
Factor = Annotated[int | None, _option("--factor", help="downsample: whole factor (default 4).")]
Reduction = Annotated[str | None, _option("--kind", help="downsample: box (default), bicubic or psf.")]
MaskFile = Annotated[
    Path | None, _option("--mask", help="mask: image or .npy, white (1) is seen, black (0) is missing.")
]
Keep = Annotated[float | None, _option("--keep", help="mask: share of the pixels seen in a random mask (default 0.3).")]
MaskKind = Annotated[str | None, _option("--mask-kind", help="mask: random (default), box, half or text.")]
MaskSeed = Annotated[int | None, _option("--mask-seed", help="mask: seed of random and text masks (default 0).")]
Weights = Annotated[str | None, _option("--weights", help="gray: bt601 (default) or bt709.")]
Pattern = Annotated[str | None, _option("--pattern", help="bayer: RGGB (default), BGGR, GRBG or GBRG.")]


@app.command()
def restore(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The measurement: PNG, JPEG, TIFF (8, 16 bit, float) or .npy.")],
    operator: Kind,
    sigma: Annotated[str, _option("--sigma", help="Noise level where white is 1 (0.02 is 5 of 255), or auto.")],
    out: Out,
    prior: Annotated[str, _option("--prior", help="A prior of `invdiff list`.")] = "natural",
    solver: Annotated[
        str | None, _option("--solver", help="A solver of `invdiff list`; if left out kps with 30 steps.")
    ] = None,
    draws: Annotated[
        str, _option("--draws", help="Number of draws, or auto: as many as --tolerance needs; point solvers make one.")
    ] = "16",
    tolerance: Annotated[
        float | None, _option("--tolerance", help="auto: error of mean and std at which to stop (default 0.005).")
    ] = None,
    min_draws: Annotated[int | None, _option("--min-draws", help="auto: at least so many (default 19).")] = None,
    max_draws: Annotated[int | None, _option("--max-draws", help="auto: at most so many (default 256).")] = None,
    seed: Seed = 0,
    simulate: Annotated[
        bool, _option("--simulate", help="IMAGE is clean: degrade it, restore that, and compare.")
    ] = False,
    truth: Annotated[
        Path | None, _option("--truth", help="The clean image, where it is known, for figures only.")
    ] = None,
    device: Annotated[str, _option("--device", help="auto, cpu or cuda.")] = "auto",
    settings: Annotated[
        list[str] | None,
        _option("--set", help="A setting of prior or solver, such as solver.eta=0.85; may be repeated."),
    ] = None,
    micro_batch: Annotated[
        int | None, _option("--micro-batch", help="Draws at a time; fewer need less memory.")
    ] = None,
    store: Annotated[
        Path | None,
        _option("--store", help="Keep the draws in this folder (Zarr) as they come; run again to go on, or for more."),
    ] = None,
    workers: Annotated[
        int | None, _option("--workers", help="Processes that share the draws, through --store (needs dask).")
    ] = None,
    tile: Annotated[
        str, _option("--tile", help="Side of the prior's tiles in pixels, off, or auto: from a million pixels on.")
    ] = "auto",
    keep_posterior: Annotated[
        bool, _option("--keep-posterior", help="Also write the draws as floats, posterior.safetensors.")
    ] = False,
    mark: Annotated[
        bool, _option("--mark", help="Put a small visible label into the corner of the restored image and the draws.")
    ] = False,
    sign_cert: Annotated[
        Path | None, _option("--sign-cert", help="Sign the pictures: your certificate chain, PEM (needs c2pa).")
    ] = None,
    sign_key: Annotated[
        Path | None, _option("--sign-key", help="Sign the pictures: its key, PEM (PKCS 8) without a password.")
    ] = None,
    overwrite: Overwrite = False,
    alpha: Alpha = "refuse",
    data_range: DataRange = None,
    psf: Psf = None,
    psf_kind: PsfKind = None,
    psf_index: PsfIndex = None,
    psf_key: PsfKey = None,
    boundary: Boundary = None,
    factor: Factor = None,
    kind: Reduction = None,
    mask: MaskFile = None,
    keep: Keep = None,
    mask_kind: MaskKind = None,
    mask_seed: MaskSeed = None,
    weights: Weights = None,
    pattern: Pattern = None,
) -> None:
    """Restore IMAGE, the measurement of a known degradation (with --simulate: a clean image to degrade first)."""
    commands.restore(
        image,
        operator=operator,
        operator_options=_operator_options(context),
        sigma=sigma,
        out=out,
        prior=prior,
        solver=solver,
        draws={
            "draws": parse_draws(draws),
            "tolerance": tolerance,
            "min_draws": min_draws,
            "max_draws": max_draws,
        },
        seed=seed,
        simulate=simulate,
        truth=truth,
        device=device,
        settings=settings or [],
        micro_batch=micro_batch,
        tile=tile,
        store=store,
        workers=workers,
        keep_posterior=keep_posterior,
        mark=mark,
        sign=(sign_cert, sign_key),
        overwrite=overwrite,
        alpha=alpha,
        data_range=data_range,
        command=context.obj,
    )


@app.command()
def degrade(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="A clean image: PNG, JPEG, TIFF or .npy.")],
    operator: Kind,
    sigma: Annotated[str, _option("--sigma", help="Noise level where white is 1.")],
    out: Out,
    seed: Seed = 0,
    file_format: Annotated[
        str, _option("--format", help="tiff and npy keep the noise as floats; png clips it to 16 bits.")
    ] = "tiff",
    overwrite: Overwrite = False,
    alpha: Alpha = "refuse",
    data_range: DataRange = None,
    psf: Psf = None,
    psf_kind: PsfKind = None,
    psf_index: PsfIndex = None,
    psf_key: PsfKey = None,
    boundary: Boundary = None,
    factor: Factor = None,
    kind: Reduction = None,
    mask: MaskFile = None,
    keep: Keep = None,
    mask_kind: MaskKind = None,
    mask_seed: MaskSeed = None,
    weights: Weights = None,
    pattern: Pattern = None,
) -> None:
    """Degrade a clean IMAGE: write the measurement, what restore needs for it, and the command that restores it."""
    commands.degrade(
        image,
        operator=operator,
        operator_options=_operator_options(context),
        sigma=sigma,
        out=out,
        seed=seed,
        file_format=file_format,
        overwrite=overwrite,
        alpha=alpha,
        data_range=data_range,
        command=context.obj,
    )


def _operator_options(context: typer.Context) -> dict[str, Any]:
    return {name: context.params[name] for name in OPTION_NAMES}


@app.command()
def check(
    context: typer.Context,
    solver: Annotated[str, typer.Argument(help="A solver of `invdiff list`, or module:Class of your own.")],
    problem: Annotated[
        list[str] | None,
        _option(
            "--prior-problem",
            help="A family of `invdiff list`, or a cell or problem of `invdiff list --problems FAMILY`; repeats.",
        ),
    ] = None,
    full: Annotated[bool, _option("--full", help="All problems, not the quick subset: hours.")] = False,
    out: Annotated[Path | None, _option("--out", help="Folder for table, verdict and picture; made here.")] = None,
    settings: Annotated[
        list[str] | None, _option("--set", help="A setting of the solver, such as solver.steps=20; may be repeated.")
    ] = None,
    draws: Annotated[int, _option("--draws", help="Number of draws for each problem, from 39 on.")] = 512,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Check a solver where the posterior is known exactly: can its spread be used as an error bar?"""
    commands.check(
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
        Path | None, _option("--out", help="Folder for tables and plots; compare in the sweep's own if left out.")
    ] = None,
    reference: Annotated[
        str | None,
        _option("--reference", help="Compare with this prior, solver, or PRIOR/SOLVER; else with the best in PSNR."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare the finished jobs of a sweep: tables, paired differences over images, and plots for a paper."""
    from .compare_tables import compare as run

    run(sweep, out=out, against=reference, overwrite=overwrite)


@app.command()
def provenance(
    picture: Annotated[Path, typer.Argument(help="PNG, JPEG or TIFF.")],
    trust: Annotated[Path | None, _option("--trust", help="PEM file of certificates that you trust.")] = None,
) -> None:
    """Print what PICTURE says of how it was made, and whether it is as it was signed."""
    from .signing import lines

    for line in lines(picture, trust=trust):
        print(line)


# Hydra's own grammar: everything is passed on as it is, --help too.
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def experiment(context: typer.Context) -> int:
    """Run an experiment, or a sweep over priors and solvers (-m): NAME=VALUE ...; see `invdiff experiment --help`."""
    from .experiments.run import main as run

    return run(context.args)


@app.command()
def report(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of --store, results of restore, or a posterior.safetensors.")],
    out: Annotated[Path, _option("--out", help="The page.")] = Path("report.html"),
    measurement: Annotated[
        Path | None, _option("--measurement", help="The measurement, where the run keeps none.")
    ] = None,
    truth: Annotated[Path | None, _option("--truth", help="The clean image, where the run keeps none.")] = None,
    operator: Annotated[
        str | None, _option("--operator", help="The operator, where it cannot be built from what the run keeps.")
    ] = None,
    sigma: Annotated[float | None, _option("--sigma", help="Noise level, where the run does not say it.")] = None,
    calibrator: Annotated[Path | None, _option("--calibrator", help="File of a calibrator of the spread.")] = None,
    title: Annotated[str | None, _option("--title", help="Of the page; the name of the run if left out.")] = None,
    number: Annotated[int, _option("--number", help="Which one of several measurements, from 0 on.")] = 0,
    overwrite: Annotated[bool, _option("--overwrite", help="Replace a page that is there.")] = False,
    alpha: Alpha = "refuse",
    data_range: DataRange = None,
    psf: Psf = None,
    psf_kind: PsfKind = None,
    psf_index: PsfIndex = None,
    psf_key: PsfKey = None,
    boundary: Boundary = None,
    factor: Factor = None,
    kind: Reduction = None,
    mask: MaskFile = None,
    keep: Keep = None,
    mask_kind: MaskKind = None,
    mask_seed: MaskSeed = None,
    weights: Weights = None,
    pattern: Pattern = None,
) -> None:
    """Write one HTML page of a RUN: pictures, draws, what they are worth and what was invented, in one file."""
    from .html.command import report as write

    own = ("out", "measurement", "truth", "operator", "sigma", "calibrator", "title", "number", "overwrite")
    given = {name: context.params[name] for name in (*own, "alpha", "data_range")}
    write(run, **given, operator_options=_operator_options(context))


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
        _option("--problems", help="The problems of check in this family instead; may be repeated."),
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
