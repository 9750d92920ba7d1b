"""Train a tiny prior in under three minutes and restore with it what it never saw: `python -m experiments.train_demo`.

It learns from seven pictures that scikit-image brings along, so nothing is downloaded; the cat is held out.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
from hydra import compose, initialize
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

from invdiff import Restoration, restore
from invdiff.metrics import psnr
from invdiff.plots import gallery
from invdiff.priors import load_natural
from invdiff.provenance import describe, embed

from .train import train

__all__ = ["main"]

PICTURES = ("astronaut", "brick", "coffee", "grass", "gravel", "immunohistochemistry", "rocket")
HELD_OUT = "chelsea"
SIGMA = 0.02
# Operator, its options, and DDRM steps: scattered missing pixels are filled from their neighbours step by step.
TASKS = {"blur": ("blur", {"psf_kind": "gaussian:2"}, 30), "70 % missing": ("mask", {"keep": 0.3}, 80)}


def lay_out(folder: Path) -> Path:
    """Write the pictures as files, and the list of those held out beside them."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in (*PICTURES, HELD_OUT):
        if not (images / f"{name}.png").exists():
            Image.fromarray(getattr(data, name)()).save(images / f"{name}.png")
    (folder / "heldout.txt").write_text(f"{HELD_OUT}.png\n")
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny prior and restore with it.")
    parser.add_argument("--out", type=Path, default=Path("runs/train_demo"))
    parser.add_argument("changes", nargs="*", help="settings of experiments/training/train.yaml, such as steps=500")
    given = parser.parse_args()
    console, clock = Console(width=100), time.monotonic()
    images = lay_out(given.out)
    places = [f"data={images}", f"out={given.out / 'run'}", f"heldout={given.out / 'heldout.txt'}"]
    with initialize("training", version_base=None):
        cfg = compose("demo", [*places, *given.changes])
    if not train(cfg):
        raise SystemExit(130)
    trained = time.monotonic() - clock
    prior = load_natural(given.out / "run" / f"{cfg.name}.safetensors")
    truth = np.asarray(data.chelsea())[22:278, 90:346]
    table = Table(title="The held-out cat, noise sigma 0.02 (white is 1); PSNR in dB")
    for head in ("task", "before", "total variation", "restored"):
        table.add_column(head, justify="left" if head == "task" else "right")
    rows: list[tuple[str, Restoration]] = []
    for task, (operator, options, steps) in TASKS.items():
        common = {"sigma": SIGMA, "simulate": True, "operator_options": options}
        tv = restore(truth, operator, prior="tv", solver="pnp_admm", **common)  # type: ignore[arg-type]
        found = restore(truth, operator, prior=prior, draws=4, solver_options={"steps": steps}, **common)  # type: ignore[arg-type]
        assert found.truth is not None
        before = float(psnr(found.measurement[None], found.truth[None]))
        figures = (before, tv.metrics["psnr"], found.metrics["psnr"])
        table.add_row(task, *(f"{figure:.2f}" for figure in figures))
        rows.append((task, found))
    gallery(rows).savefig(given.out / "restored.png")
    embed(given.out / "restored.png", dataclasses.replace(describe(found.posterior, "figure"), operator=None))
    console.print(table)
    console.print(f"Trained in {trained:.0f} s, {time.monotonic() - clock:.0f} s in all; {given.out / 'restored.png'}")


if __name__ == "__main__":
    main()
