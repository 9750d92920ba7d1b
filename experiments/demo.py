"""Restore a photograph from four degradations and look at it: `python -m experiments.demo`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from skimage import data
from torch import Tensor

from invdiff import Restoration, restore
from invdiff.plots import gallery
from invdiff.report import output_folder, write_json, write_restoration

SIGMA = 0.02
TASKS = {
    "blur": ("blur", {"psf_kind": "gaussian:2"}),
    "4x reduction": ("downsample", {"factor": 4, "kind": "bicubic"}),
    "70 % missing": ("mask", {"keep": 0.3}),
    "gray": ("gray", {}),
}


def photograph() -> np.ndarray:
    """The face and helmet of scikit-image's astronaut (NASA, public domain), 256x256."""
    return data.astronaut()[:256, 96:352]


def naive(result: Restoration) -> Tensor:
    """The measurement as somebody without a prior would show it: the regularised inverse, in the image's shape."""
    from invdiff import Likelihood
    from invdiff.noise import GaussianNoise

    likelihood = Likelihood(result.measurement, result.operator, GaussianNoise(max(result.sigma, 1e-3)))
    flat = torch.full((1, *result.operator.in_shape), 0.5)
    return likelihood.prox(flat, 16.0)[0].clamp(0, 1)


def run(out: Path, draws: int, steps: int, overwrite: bool) -> None:
    console = Console()
    image = photograph()
    table = Table(title="256x256 photograph, noise sigma 0.02 of the range; PSNR in dB")
    for head in ("task", "linear", "TV", "natural", "SSIM", "one draw", "chi2", "spread/error", "seconds"):
        table.add_column(head, justify="left" if head == "task" else "right")
    rows, summary = [], {}
    with output_folder(out, overwrite=overwrite) as folder:
        for task, (operator, options) in TASKS.items():
            clock = time.monotonic()
            common = {"sigma": SIGMA, "simulate": True, "operator_options": options}
            result = restore(image, operator, draws=draws, solver_options={"steps": steps}, **common)
            seconds = time.monotonic() - clock
            smooth = restore(image, operator, prior="tv", solver="pnp_admm", **common)
            assert result.truth is not None
            linear = naive(result)
            mse = float((linear - result.truth).square().mean())
            figures = result.metrics
            summary[task] = figures | {
                "psnr_linear": -10 * float(np.log10(mse)),
                "psnr_tv": smooth.metrics["psnr"],
                "seconds": round(seconds, 1),
            }
            table.add_row(
                task,
                f"{summary[task]['psnr_linear']:.2f}",
                f"{smooth.metrics['psnr']:.2f}",
                f"{figures['psnr']:.2f}",
                f"{figures['ssim']:.3f}",
                f"{figures['psnr_draw']:.2f}",
                f"{figures['chi2']['value']:.2f}",
                f"{figures['spread_ratio']:.2f}",
                f"{seconds:.0f}",
            )
            sub = folder / task.replace(" ", "_").replace("%", "percent")
            sub.mkdir()
            record = result.posterior.record | {"command": "python -m experiments.demo", "task": task}
            write_restoration(sub, result, record)
            rows.append((task, result))
        gallery(rows).savefig(folder / "demo.png")
        write_json(folder / "metrics.json", summary)
        write_json(folder / "record.json", {"draws": draws, "steps": steps, "sigma": SIGMA, "seed": 0})
    console.print(table)
    console.print(
        "linear: the regularised inverse without a prior. TV: PnP-ADMM with total variation. natural: the mean of "
        f"{draws} DDRM draws\nwith the prior that ships. chi2 near 1: draws agree with the measurement. spread/error "
        "near 1: the spread is as large as the error."
    )
    console.print(f"Pictures: {out / 'demo.png'} and the folders beside it.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Restore a photograph from four degradations.")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    settings = parser.parse_args()
    run(settings.out, settings.draws, settings.steps, overwrite=True)


if __name__ == "__main__":
    main()
