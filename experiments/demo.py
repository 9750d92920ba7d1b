"""Restore a photograph from four degradations and look at it: `python -m experiments.demo`."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from skimage import data
from torch import Tensor

from invdiff import Likelihood, Restoration, restore
from invdiff.html import write_report
from invdiff.metrics import psnr
from invdiff.noise import GaussianNoise
from invdiff.plots import gallery
from invdiff.provenance import describe, embed
from invdiff.report import output_folder, write_json, write_restoration

SIGMA = 0.02
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "blur": ("blur", {"psf_kind": "gaussian:2"}),
    "4x reduction": ("downsample", {"factor": 4, "kind": "bicubic"}),
    "70 % missing": ("mask", {"keep": 0.3}),
    "gray": ("gray", {}),
}
# The one whose draws differ most, by eye.
REPORTED = "4x reduction"


def photograph() -> np.ndarray:
    """The face and helmet of scikit-image's astronaut (NASA, public domain), reduced to 128x128."""
    return data.astronaut()[:256, 96:352].reshape(128, 2, 128, 2, 3).mean((1, 3)).round().astype(np.uint8)


def linear(result: Restoration) -> Tensor:
    """The regularised inverse of the measurement: what it says to somebody without a prior, (C, H, W)."""
    likelihood = Likelihood(result.measurement, result.operator, GaussianNoise(max(result.sigma, 1e-3)))
    flat = torch.full((1, *result.operator.in_shape), 0.5)
    return likelihood.prox(flat, 16.0)[0].clamp(0, 1)


def ensemble(image: np.ndarray, operator: str, store: Path, draws: int, **common: Any) -> Restoration:
    """The draws, kept in a folder as they come; those of an interrupted demo are gone on with."""
    try:
        return restore(image, operator, draws=draws, store=store, **common)
    except ValueError:
        # Of another version of this demo, say: its draws are not these.
        shutil.rmtree(store)
        return restore(image, operator, draws=draws, store=store, **common)


def run(out: Path, draws: int, overwrite: bool) -> None:
    console = Console(width=100)
    image = photograph()
    table = Table(title=f"A 128x128 photograph with noise sigma {SIGMA} (white is 1); PSNR in dB")
    heads = ("task", "linear", "TV", "HQS", "KPS", "SSIM", "one draw", "chi2", "spread/error", "seconds")
    for head in heads:
        table.add_column(head, justify="left" if head == "task" else "right", no_wrap=True)
    rows: list[tuple[str, Restoration]] = []
    summary: dict[str, Any] = {}
    if not overwrite and out.exists() and any(out.iterdir()):
        raise SystemExit(f"The folder {out} is not empty: choose another.")
    # Beside the pictures, which come at the end: what is interrupted is gone on with.
    ensembles = out / "ensembles"
    ensembles.mkdir(parents=True, exist_ok=True)
    with output_folder(out, overwrite=True) as folder:
        for task, (operator, options) in TASKS.items():
            name = task.replace(" ", "_").replace("%", "percent")
            common: dict[str, Any] = {"sigma": SIGMA, "simulate": True, "operator_options": options}
            tv = restore(image, operator, prior="tv", solver="pnp_admm", **common)
            hqs = restore(image, operator, solver="pnp_hqs", **common)
            clock = time.monotonic()
            result = ensemble(image, operator, ensembles / f"{name}.zarr", draws, **common)
            if result.posterior.record.get("interrupted"):
                raise KeyboardInterrupt
            seconds = time.monotonic() - clock
            assert result.truth is not None
            figures = dict(result.metrics)
            figures["psnr_linear"] = float(psnr(linear(result)[None], result.truth[None]))
            figures["psnr_tv"], figures["psnr_hqs"] = tv.metrics["psnr"], hqs.metrics["psnr"]
            figures["seconds"] = round(seconds, 1)
            summary[task] = figures
            decibels = [f"{figures[key]:.2f}" for key in ("psnr_linear", "psnr_tv", "psnr_hqs", "psnr")]
            table.add_row(
                task,
                *decibels,
                f"{figures['ssim']:.3f}",
                f"{figures['psnr_draw']:.2f}",
                f"{figures['chi2']['value']:.2f}",
                f"{figures['spread_ratio']:.2f}",
                f"{seconds:.0f}",
            )
            sub = folder / name
            sub.mkdir()
            record = result.posterior.record | {"command": "python -m experiments.demo", "task": task}
            write_restoration(sub, result, record)
            rows.append((task, result))
            console.print(f"{task}: {figures['psnr']:.2f} dB in {seconds:.0f} s")
        gallery(rows).savefig(folder / "demo.png")
        shown = dict(rows)[REPORTED]
        title = f"A photograph from a {REPORTED.replace('x', '×')}"
        write_report(folder / "report.html", shown.posterior, title=title)
        embed(folder / "demo.png", dataclasses.replace(describe(result.posterior, "figure"), operator=None))
        write_json(folder / "metrics.json", summary)
        write_json(folder / "record.json", {"command": "python -m experiments.demo", "draws": draws, "sigma": SIGMA})
    console.print(table)
    console.print(
        "linear: the regularised inverse, without a prior. TV: PnP-ADMM with total variation. HQS: PnP-HQS with the "
        f"prior that ships. KPS: the mean of {draws} draws with it; one draw: one of them. chi2 near 1: the draws "
        "agree with the measurement. spread/error near 1: the draws' spread is as large as their mean's error."
    )
    console.print(
        f"Pictures: {out / 'demo.png'}, and one folder a task beside it. Draws: {ensembles}, for "
        "invdiff.Posterior.load(...) or xarray.open_datatree(...).\n"
        f"Draw by draw, pixel by pixel, in a browser: {out / 'report.html'}; of the others, `invdiff report "
        f"{ensembles / 'blur.zarr'}`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Restore a photograph from four degradations.")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--draws", type=int, default=32)
    settings = parser.parse_args()
    # The default folder is ours to write again; another one is not.
    try:
        run(settings.out, settings.draws, overwrite=settings.out == Path("demo_out"))
    except KeyboardInterrupt:
        kept = settings.out / "ensembles"
        sys.exit(f"Interrupted: the draws that are finished are kept in {kept}, and the same line goes on with them.")


if __name__ == "__main__":
    main()
