"""PSNR against time: `python -m benchmarks.curve` draws `docs/curve.png` from the tables of the other scripts.

The time is that of one 3x256x256 forward in bfloat16, channels last, from `results/precision.csv`
(`benchmarks.precision`). The PSNR is that of `results/denoising.csv` (`benchmarks.denoising` on CBSD68). DRUNet's
weights are not at hand: its PSNR is the published one (Zhang et al. 2021, DPIR, colour denoising), its time that of its
network.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

HERE = Path(__file__).parent
PUBLISHED = {"drunet": {15: 34.30, 25: 31.69, 50: 28.51}}
TARGETS = {15: 34.20, 25: 31.55, 50: 28.40}


def read(name: str) -> list[dict[str, str]]:
    """The rows of one table of results."""
    with (HERE / "results" / name).open(newline="") as handle:
        return list(csv.DictReader(handle))


def points(level: int) -> list[tuple[str, float, float]]:
    """(network, milliseconds, PSNR) for every network of which both are known."""
    seconds = {
        row["what"]: float(row["value"])
        for row in read("precision.csv")
        if row["mode"] == "bfloat16" and row["pass"] == "forward"
    }
    decibels = {row["prior"]: float(row["psnr"]) for row in read("denoising.csv") if int(row["sigma_255"]) == level}
    decibels |= {name: table[level] for name, table in PUBLISHED.items()}
    return [(name, 1000 * value, decibels[name]) for name, value in seconds.items() if name in decibels]


def draw() -> Figure:
    """One panel per noise level; the dashed line is what this project set out to reach."""
    figure = Figure(figsize=(9.5, 3.2), dpi=120, layout="constrained")
    for axes, level in zip(figure.subplots(1, 3), TARGETS, strict=True):
        for name, milliseconds, psnr in points(level):
            axes.plot(milliseconds, psnr, "o", color="C3" if name == "natural" else "C0")
            note = f"{name} (published)" if name in PUBLISHED else name
            axes.annotate(
                note, (milliseconds, psnr), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        axes.axhline(TARGETS[level], color="0.6", linestyle="--", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks([30, 100, 300], labels=["30", "100", "300"])
        axes.set_xticks([], minor=True)
        axes.margins(x=0.35, y=0.2)
        axes.set_title(f"sigma {level}/255", fontsize=9)
        axes.set_xlabel("ms per 256x256 forward", fontsize=8)
        axes.tick_params(labelsize=7, which="both")
    figure.axes[0].set_ylabel("PSNR on CBSD68, dB", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw PSNR against time per forward.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "curve.png")
    settings = parser.parse_args()
    draw().savefig(settings.out)
    for level in TARGETS:
        for name, milliseconds, psnr in points(level):
            print(f"{level:3d}  {name:8s} {milliseconds:7.1f} ms  {psnr:.2f} dB")


if __name__ == "__main__":
    main()
