"""What the commands do, in plain Python: read and check everything, compute, write one complete folder."""

from __future__ import annotations

import ast
import hashlib
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from . import options, priors, solvers
from .arrays import Alpha, Array, from_array
from .choices import QUICK, check_sigma, load_prior, load_solver, pick_device
from .images import read_array, write_image
from .operators import Mask, Operator
from .provenance import degraded
from .record import environment
from .report import output_folder, weight_hash, write_json, write_restoration
from .restoration import Restoration, simulate_measurement
from .restoration import restore as restore_array
from .signing import signer_of

__all__ = ["Interrupted", "command_line", "degrade", "list_names", "parse_settings", "restore"]


class Interrupted(Exception):
    """Ctrl-C, and what was finished before it."""


def restore(
    image: Path,
    *,
    operator: str,
    operator_options: Mapping[str, Any],
    sigma: str,
    out: Path,
    prior: str,
    solver: str | None,
    draws: Mapping[str, Any],
    seed: int,
    simulate: bool,
    truth: Path | None,
    device: str,
    settings: Sequence[str],
    micro_batch: int | None,
    tile: str,
    store: Path | None,
    workers: int | None,
    keep_posterior: bool,
    mark: bool,
    sign: tuple[Path | None, Path | None],
    overwrite: bool,
    alpha: str,
    data_range: float | None,
    command: Sequence[str],
) -> None:
    """Restore an image file into a folder; see `invdiff.restoration.restore` for what is computed.

    `draws` is all that it takes on their number: draws, tolerance, min_draws, max_draws.
    """
    began = time.monotonic()
    own = parse_settings(settings)
    signer = signer_of(*sign)
    chosen = load_solver(solver, own["solver"])
    slot = load_prior(prior, own["prior"])
    pixels = read_array(image)
    if simulate and truth is not None:
        raise ValueError("Both --truth and --simulate are given: with --simulate IMAGE itself is the truth.")
    if workers is not None and store is None:
        raise ValueError(f"--workers is {workers} without --store: give the folder that the workers write to.")
    engine = None
    if workers is not None:
        from .distributed import Dask

        engine = Dask(workers=workers)
    if store is not None and out.resolve() in (store.resolve(), *store.resolve().parents):
        raise ValueError(f"--store {store} lies in --out {out}, which is written at the end: keep the draws elsewhere.")
    with _kept_draws(store, draws["draws"]), output_folder(out, overwrite=overwrite) as stage:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Interrupted")  # said once, by _kept_draws
            result = restore_array(
                pixels,
                operator,
                sigma=sigma,
                prior=slot,
                solver=chosen,
                **draws,
                seed=seed,
                data_range=data_range,
                device=device,
                simulate=simulate,
                truth=None if truth is None else read_array(truth),
                alpha=cast(Alpha, alpha),
                micro_batch=micro_batch,
                tile=int(tile) if tile.isdecimal() else tile,
                store=store,
                engine=engine,
                operator_options=operator_options,
            )
        if result.posterior.record.get("interrupted"):
            raise KeyboardInterrupt
        record = {
            "written_by": "invdiff restore",
            "command": command_line(command),
            "input": _input(image, pixels),
            "settings": {
                "operator": {"name": operator, **_given(operator_options)},
                "prior": {"name": prior, **own["prior"]},
                "solver": {"name": solver or "kps", **(QUICK if solver is None else {}), **own["solver"]},
                "simulate": simulate,
                "sigma": result.sigma,
                "sigma_estimated": result.sigma_estimated,
                "alpha": alpha,
                "data_range": data_range,
                "device": device,
                "tile": tile,
            },
            "weights_sha256": weight_hash(slot),
            "seconds_total": round(time.monotonic() - began, 3),
        }
        bits = _bits(pixels)
        write_restoration(stage, result, record, bits=bits, keep_posterior=keep_posterior, mark=mark, signer=signer)
    _print_result(result, out)


@contextmanager
def _kept_draws(store: Path | None, draws: int | str) -> Iterator[None]:
    """On Ctrl-C, say which draws a folder keeps; without one nothing is kept."""
    try:
        yield
    except KeyboardInterrupt:
        if store is None or not store.exists():
            raise
        from .stored import Stored

        stored = Stored(store)
        size = stored.attributes["settings"]["micro_batch"]
        done = f"{stored.finished}" if isinstance(draws, str) else f"{min(stored.finished, draws)} of {draws}"
        raise Interrupted(
            f"{done} draws are finished and kept in {store}; run it again to go on. "
            f"They are kept in micro-batches of {size}; --micro-batch 1 keeps every one, and takes longer."
        ) from None


def degrade(
    image: Path,
    *,
    operator: str,
    operator_options: Mapping[str, Any],
    sigma: str,
    out: Path,
    seed: int,
    file_format: str,
    overwrite: bool,
    alpha: str,
    data_range: float | None,
    command: Sequence[str],
) -> None:
    """Write measurement, truth, what the operator needs and the command that restores, into a folder."""
    if file_format not in ("tiff", "npy", "png"):
        raise ValueError(f"The format is {file_format!r}: expected 'tiff', 'npy' or 'png'.")
    level = check_sigma(sigma, simulate=True)
    assert level is not None
    pixels = read_array(image)
    tensor, _ = from_array(pixels, data_range=data_range, alpha=cast(Alpha, alpha), name=str(image))
    forward = options.build_operator(operator, tuple(tensor.shape[1:]), simulate=True, **operator_options)
    y = simulate_measurement(tensor[0], forward, level, seed=seed)
    with output_folder(out, overwrite=overwrite) as stage:
        measurement = f"measurement.{file_format}"
        made = degraded(forward, level, seed)
        holds = None if file_format == "npy" else made
        write_image(stage / measurement, y, bits=16 if file_format == "png" else 32, provenance=holds)
        if file_format != "png":
            write_image(stage / "preview.png", y, provenance=made)
        write_image(stage / "truth.png", tensor, bits=_bits(pixels))
        kept = _keep_operator(stage, out, operator, forward, operator_options)
        words = ["invdiff", "restore", str(out / measurement), "--operator", operator, *kept, "--sigma", f"{level:g}"]
        if file_format != "png":
            words += ["--data-range", "1"]  # strong noise may leave the range that floats are expected in
        words += ["--truth", str(out / "truth.png"), "--out", str(out / "restored")]
        line = shlex.join(words)
        record = {
            "written_by": "invdiff degrade",
            "command": command_line(command),
            "restore": line,
            "input": _input(image, pixels),
            "settings": {
                "operator": {"name": operator, **_given(operator_options)},
                "sigma": level,
                "seed": seed,
                "alpha": alpha,
                "data_range": data_range,
            },
            "in_shape": list(forward.in_shape),
            "out_shape": list(forward.out_shape),
            "environment": environment(pick_device("cpu")),
        }
        write_json(stage / "record.json", record)
    print(f"Degraded into {out}; to restore it:\n{line}")


def list_names(families: Sequence[str] = ()) -> None:
    """Print operators, priors, solvers and what `check` runs them on, with one line each; or the problems of families.

    Raises:
        ValueError: for an unknown family.
    """
    from .exact.check import names as problem_names
    from .exact.problems import cells

    if families:
        for cell, count in [item for family in families for item in cells(family).items()]:
            print(f"{cell}/0" + (f" to /{count - 1}" if count > 1 else ""))
        return
    titles = {"operators": options.names(), "priors": priors.names(), "solvers": solvers.names()}
    for title, names in (titles | {"problems of check": problem_names()}).items():
        print(title)
        for name, line in names.items():
            print(f"  {name:<14} {line}")


def parse_settings(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sort solver.NAME=VALUE and prior.NAME=VALUE; values are Python numbers, True, False, None, or plain words.

    Raises:
        ValueError: a word of another form.

    >>> parse_settings(["solver.eta=0.5", "solver.schedule=vp"])["solver"]
    {'eta': 0.5, 'schedule': 'vp'}
    """
    found: dict[str, dict[str, Any]] = {"solver": {}, "prior": {}}
    for word in words:
        name, equals, text = word.partition("=")
        owner, _, key = name.strip().partition(".")
        if not equals or owner not in found or not key.isidentifier():
            raise ValueError(f"The setting is {word!r}: expected solver.NAME=VALUE or prior.NAME=VALUE.")
        try:
            found[owner][key] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            found[owner][key] = text.strip()
    return found


def _keep_operator(stage: Path, out: Path, name: str, operator: Operator, given: Mapping[str, Any]) -> list[str]:
    """Write PSF or mask beside the measurement; return the options that build the operator from them."""
    kept = _given(given)
    psf = options.make_psf(**{key: kept.pop(key) for key in options.PSF_OPTIONS if key in kept})
    if psf is not None:
        np.save(stage / "psf.npy", psf.numpy())
        kept["psf"] = str(out / "psf.npy")
    if name == "blur":
        kept.setdefault("boundary", "circular")  # said, so that restore does not warn of a photograph's
    if name == "mask" and isinstance(operator, Mask):
        write_image(stage / "mask.npy", operator.singular, bits=32)
        kept = {"mask": str(out / "mask.npy")}
    return [word for key, value in kept.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items() if value is not None}


def command_line(words: Sequence[str]) -> str:
    """What was typed, as a shell takes it."""
    return shlex.join(["invdiff", *words])


def _input(path: Path, pixels: Array) -> dict[str, Any]:
    return {
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "shape": list(pixels.shape),
        "dtype": str(pixels.dtype),
    }


def _bits(pixels: Array) -> int:
    """Eight bits in, eight bits out; everything finer is written with 16."""
    return 8 if pixels.dtype == np.uint8 else 16


def _print_result(result: Restoration, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics, record = result.metrics, result.posterior.record
    table = Table(show_header=False, box=None, pad_edge=False)
    estimate = " (an estimate from the measurement)" if result.sigma_estimated else ""
    table.add_row("noise sigma", f"{result.sigma:.4g}{estimate}")
    for name, key in (("PSNR", "psnr"), ("SSIM", "ssim")):
        if metrics.get(key) is not None:
            before = metrics.get(f"{key}_measurement")
            unit, digits = (" dB", 2) if key == "psnr" else ("", 4)
            text = f"{metrics[key]:.{digits}f}{unit}"
            table.add_row(name, text + (f" (measurement {before:.{digits}f}{unit})" if before is not None else ""))
    chi2 = metrics["chi2"]
    if chi2["value"] is not None:
        table.add_row(
            "residual chi2", f"{chi2['value']:.3f} per measured value" + ("" if chi2["verdict"] else " (point)")
        )
    else:
        table.add_row("residual", f"{chi2['rms']:.3g} rms")
    if "mean_std" in metrics:
        table.add_row("mean std", f"{metrics['mean_std']:.4f} ({metrics['label']} of {metrics['draws']} draws)")
    if "monte_carlo" in metrics:
        mean, std, more = metrics["monte_carlo"].values()
        table.add_row("Monte Carlo error", f"mean {mean:.4f}, std {std:.4f} ({more} more draws halve both)")
    if metrics.get("spread_ratio") is not None:
        table.add_row("spread / error", f"{metrics['spread_ratio']:.2f} (1 where the spread is honest)")
    table.add_row("time", f"{record['seconds']:.1f} s, {record['nfe']} denoiser calls a draw")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    if chi2["verdict"]:
        console.print(chi2["verdict"])
    console.print(f"written to {out}")
