"""What a smaller or larger network would give: `python -m benchmarks.sizes train IMAGES`, then `... measure CBSD68`.

U-Nets of the form that ships, with narrower and wider layers, trained from random weights by `experiments.train` and
its config `size`: Muon, one cosine, as many steps as fit into about the same time, and for two of them twice as many.
Trainings that stand in runs/size are left as they are, and one that was stopped goes on. `measure` writes the PSNR on a
folder of photographs, noise as in `benchmarks.denoising`; the milliseconds of one 3x256x256 forward in bfloat16 and of
one step of training on one core, all networks in turns; and draws `docs/sizes.png`.

The time is short beside that of the prior that ships, which is measured too, and one learning rate serves all widths.
The larger a network, the further it is then from what it could reach: the figure shows which size is best for this
time, and how that moves with more of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import nn

matplotlib.use("Agg")
from matplotlib.figure import Figure

from experiments.optimizers import optimizers
from invdiff import priors
from invdiff.priors.cnn import DRUNetwork
from invdiff.priors.diffusion import DiffusionPrior
from invdiff.priors.precision import lay_out

from . import rows
from .denoising import mean_psnr
from .precision import forward, photograph, timed

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sizes.csv"
LONGER = ", longer"
# Widths, finest level first, and steps: as many as take one core about a quarter of an hour, or half an hour.
SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    "half": ((16, 32, 64, 80), 5400),
    "three quarters": ((24, 48, 96, 120), 3000),
    "as it ships": ((32, 64, 128, 160), 2200),
    "one and a half": ((48, 96, 192, 240), 1100),
    f"half{LONGER}": ((16, 32, 64, 80), 10800),
    f"as it ships{LONGER}": ((32, 64, 128, 160), 4400),
}
LEVELS = (15, 25, 50)
COLUMNS = ("network", "widths", "parameters", "steps", "step_s", "forward_s", *(f"psnr_{level}" for level in LEVELS))
SHIPPED, LARGEST = "natural", "drunet"


def weights(folder: Path, name: str) -> Path:
    """The file that a training ends with."""
    return folder / name.replace(",", "").replace(" ", "_") / "size.safetensors"


def train(images: Path, folder: Path) -> None:
    """Train what has no file yet, one network after the other.

    Raises:
        SystemExit: a training failed or was stopped.
    """
    for name, (widths, steps) in SIZES.items():
        out = weights(folder, name)
        if out.exists():
            continue
        command = [sys.executable, "-m", "experiments.train", "--config-name", "size", f"data={images}"]
        command += [f"network.widths={list(widths)}", f"steps={steps}", f"out={out.parent}"]
        print(f"{name}: {steps} steps", flush=True)
        code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        if code:
            raise SystemExit(code)


def training_step(network: nn.Module) -> Callable[[], object]:
    """One step as the config takes it: a batch forward and backward, clipped, and Muon, whose cost grows with width."""
    laid = network.train().requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run, steppers = torch.compile(laid), optimizers(laid, "muon", 1e-9, 0.0)
    x, level = torch.randn(16, 3, 64, 64).contiguous(memory_format=torch.channels_last), torch.zeros(16)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x, level).square().mean()
        laid.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(laid.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()

    return call


def seconds(networks: dict[str, DiffusionPrior], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of a forward, DRUNet's too, on all threads, and of a step of training on one thread."""
    # The U-Net's first layer and skip path are of float32 and take the image as it is.
    x = photograph().contiguous(memory_format=torch.channels_last)
    with_level = torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1).to(torch.bfloat16, memory_format=torch.channels_last)
    calls = {name: forward(lay_out(p.network.eval(), "bfloat16")[0], x, torch.zeros(1)) for name, p in networks.items()}
    calls[LARGEST] = forward(lay_out(DRUNetwork(3).eval(), "bfloat16")[0], with_level)
    forwards = timed(calls, repeats)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return forwards, timed({name: training_step(p.network) for name, p in networks.items()}, repeats)
    finally:
        torch.set_num_threads(threads)


def measure(paths: Sequence[Path], folder: Path, repeats: int) -> list[rows.Row]:
    """One row a network.

    Raises:
        SystemExit: a network is not trained yet, or for another number of steps.
    """
    missing = [name for name in SIZES if not weights(folder, name).exists()]
    if missing:
        raise SystemExit(f"Not trained yet: {'; '.join(missing)}. Run `python -m benchmarks.sizes train IMAGES` first.")
    networks = {name: priors.load_natural(weights(folder, name)) for name in SIZES}
    for name, prior in networks.items():
        if (took := (prior.card or {}).get("steps")) != SIZES[name][1]:
            raise SystemExit(
                f"{weights(folder, name)} was trained for {took} steps, not {SIZES[name][1]}: remove its folder and "
                "train it again."
            )
    networks[SHIPPED] = priors.load_natural()
    levels = {name: {f"psnr_{n}": f"{mean_psnr(p, paths, n):.3f}" for n in LEVELS} for name, p in networks.items()}
    # A network that was trained for longer takes as long.
    forwards, steps = seconds({name: p for name, p in networks.items() if not name.endswith(LONGER)}, repeats)
    made = []
    for name, prior in networks.items():
        config: Any = prior.network.config
        size = name.removesuffix(LONGER)
        row = {"network": name, "widths": " ".join(map(str, config["widths"]))}
        row["parameters"] = str(sum(p.numel() for p in prior.network.parameters()))
        row["steps"] = str(SIZES[name][1]) if name in SIZES else ""
        row |= {"step_s": f"{steps[size]:.3f}", "forward_s": f"{forwards[size]:.4f}"}
        made.append(row | levels[name])
    made.append({"network": LARGEST, "forward_s": f"{forwards[LARGEST]:.4f}"})
    return made


def table(found: Sequence[rows.Row]) -> list[str]:
    """The table of docs/natural.md; minutes are steps times the seconds of one."""
    lines = [
        "| network | widths | million parameters | steps | minutes | ms a forward | 15/255 | 25/255 | 50/255 |",
        "|" + " --- |" * 9,
    ]
    for row in found:
        if row["network"] == LARGEST:
            continue
        steps = row["steps"]
        minutes = f"{int(steps) * float(row['step_s']) / 60:.0f}" if steps else ""
        words = [row["network"], row["widths"], f"{int(row['parameters']) / 1e6:.1f}", steps, minutes]
        words.append(f"{1000 * float(row['forward_s']):.0f}")
        lines.append("| " + " | ".join([*words, *(f"{float(row[f'psnr_{n}']):.2f}" for n in LEVELS)]) + " |")
    return lines


def draw(found: Sequence[rows.Row]) -> Figure:
    """One panel a noise level: the networks trained alike as lines, the one that ships, and the limit of its time."""
    figure = Figure(figsize=(9.5, 3.4), dpi=120, layout="constrained")
    by_name = {row["network"]: row for row in found}
    limit = 1000 * float(by_name[LARGEST]["forward_s"]) / 4

    def point(name: str, level: int) -> tuple[float, float]:
        return 1000 * float(by_name[name]["forward_s"]), float(by_name[name][f"psnr_{level}"])

    for axes, level in zip(figure.subplots(1, len(LEVELS)), LEVELS, strict=True):
        for longer, colour, label in ((False, "C0", "a quarter of an hour"), (True, "C1", "half an hour")):
            names = [name for name in SIZES if name.endswith(LONGER) == longer]
            axes.plot(*zip(*(point(n, level) for n in names), strict=True), "o-", color=colour, label=label)
        axes.plot(*point(SHIPPED, level), "o", color="C3", label="the one that ships")
        axes.axvline(limit, color="0.6", linestyle="--", linewidth=0.8, label="a quarter of DRUNet's time")
        axes.set_title(f"sigma {level}/255", fontsize=9)
        axes.set_xlabel("ms per 256x256 forward", fontsize=8)
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("PSNR on CBSD68, dB", fontsize=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="PSNR and time of networks of several sizes.")
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("images", type=Path, help="training images, or the photographs to measure on")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "size", help="of the trained networks")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV; the picture of another one lies beside it")
    given = parser.parse_args()
    if given.what == "train":
        train(given.images.resolve(), given.folder.resolve())
        return
    paths = sorted(given.images.glob("*.png"))
    if not paths:
        raise SystemExit(f"No PNG images in {given.images}: expected a folder such as CBSD68.")
    found = measure(paths, given.folder, given.repeats)
    rows.write(given.out, COLUMNS, found)
    picture = HERE.parent / "docs" / "sizes.png" if given.out == RESULTS else given.out.with_suffix(".png")
    draw(found).savefig(picture)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
