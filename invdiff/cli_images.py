"""`invdiff restore` and `invdiff degrade`: what a user may state, in the words of the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import commands
from .flags import Alpha, DataRange, Kind, Out, Overwrite, Seed, option, takes_operator
from .montecarlo import parse_draws

__all__ = ["degrade", "restore"]


@takes_operator
def restore(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The measurement: PNG, JPEG, TIFF (8, 16 bit, float) or .npy.")],
    operator: Kind,
    sigma: Annotated[str, option("--sigma", help="Noise level where white is 1 (0.02 is 5 of 255), or auto.")],
    out: Out,
    prior: Annotated[str, option("--prior", help="A prior of `invdiff list`.")] = "natural",
    solver: Annotated[
        str | None, option("--solver", help="A solver of `invdiff list`; if left out kps with 30 steps.")
    ] = None,
    draws: Annotated[
        str, option("--draws", help="Number of draws, or auto: as many as --tolerance needs; point solvers make one.")
    ] = "16",
    tolerance: Annotated[
        float | None, option("--tolerance", help="auto: error of mean and std at which to stop (default 0.005).")
    ] = None,
    min_draws: Annotated[int | None, option("--min-draws", help="auto: at least so many (default 19).")] = None,
    max_draws: Annotated[int | None, option("--max-draws", help="auto: at most so many (default 256).")] = None,
    seed: Seed = 0,
    simulate: Annotated[
        bool, option("--simulate", help="IMAGE is clean: degrade it, restore that, and compare.")
    ] = False,
    truth: Annotated[
        Path | None, option("--truth", help="The clean image, where it is known, for figures only.")
    ] = None,
    device: Annotated[str, option("--device", help="auto, cpu or cuda.")] = "auto",
    settings: Annotated[
        list[str] | None,
        option("--set", help="A setting of prior or solver, such as solver.eta=0.85; may be repeated."),
    ] = None,
    micro_batch: Annotated[int | None, option("--micro-batch", help="Draws at a time; fewer need less memory.")] = None,
    store: Annotated[
        Path | None,
        option("--store", help="Keep the draws in this folder (Zarr) as they come; run again to go on, or for more."),
    ] = None,
    workers: Annotated[
        int | None, option("--workers", help="Processes that share the draws, through --store (needs dask).")
    ] = None,
    tile: Annotated[
        str, option("--tile", help="Side of the prior's tiles in pixels, off, or auto: from a million pixels on.")
    ] = "auto",
    keep_posterior: Annotated[
        bool, option("--keep-posterior", help="Also write the draws as floats, posterior.safetensors.")
    ] = False,
    mark: Annotated[
        bool, option("--mark", help="Put a small visible label into the corner of the restored image and the draws.")
    ] = False,
    sign_cert: Annotated[
        Path | None, option("--sign-cert", help="Sign the pictures: your certificate chain, PEM (needs c2pa).")
    ] = None,
    sign_key: Annotated[
        Path | None, option("--sign-key", help="Sign the pictures: its key, PEM (PKCS 8) without a password.")
    ] = None,
    overwrite: Overwrite = False,
    alpha: Alpha = "refuse",
    data_range: DataRange = None,
    *,
    operator_options: dict[str, Any],
) -> None:
    """Restore IMAGE, the measurement of a known degradation (with --simulate: a clean image to degrade first)."""
    commands.restore(
        image,
        operator=operator,
        operator_options=operator_options,
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


@takes_operator
def degrade(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="A clean image: PNG, JPEG, TIFF or .npy.")],
    operator: Kind,
    sigma: Annotated[str, option("--sigma", help="Noise level where white is 1.")],
    out: Out,
    seed: Seed = 0,
    file_format: Annotated[
        str, option("--format", help="tiff and npy keep the noise as floats; png clips it to 16 bits.")
    ] = "tiff",
    overwrite: Overwrite = False,
    alpha: Alpha = "refuse",
    data_range: DataRange = None,
    *,
    operator_options: dict[str, Any],
) -> None:
    """Degrade a clean IMAGE: write the measurement, what restore needs for it, and the command that restores it."""
    commands.degrade(
        image,
        operator=operator,
        operator_options=operator_options,
        sigma=sigma,
        out=out,
        seed=seed,
        file_format=file_format,
        overwrite=overwrite,
        alpha=alpha,
        data_range=data_range,
        command=context.obj,
    )
