"""What a smaller or larger network would give: `python -m benchmarks.sizes train IMAGES`, then `... measure CBSD68`.

U-Nets of the form that ships, with narrower and wider layers, trained from random weights by `experiments.train` and
its config `size` for about the same time: Muon, one cosine, as many steps as fit. Trainings that stand in runs/size are
left as they are, and one that was stopped goes on. `measure` writes the PSNR on a folder of photographs, noise as in
`benchmarks.denoising`; the milliseconds of one 3x256x256 forward in bfloat16 and of one step of training on one core,
all networks in turns; and draws `docs/sizes.png`.

The time is short beside that of the prior that ships, which is measured too. The larger a network, the further it is
then from what it could reach: the figure shows which size is best for this time, and no more than that.
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

from invdiff import priors
from invdiff.priors.cnn import DRUNetwork
from invdiff.priors.diffusion import DiffusionPrior
from invdiff.priors.precision import lay_out

from . import rows
from .denoising import mean_psnr
from .precision import forward, photograph, timed

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sizes.csv"
# Widths, finest level first, and steps: as many as take one core about 20 minutes.
SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    "half": ((16, 32, 64, 80), 5400),
    "three quarters": ((24, 48, 96, 120), 3000),
    "as it ships": ((32, 64, 128, 160), 2200),
    "one and a half": ((48, 96, 192, 240), 1100),
}
LEVELS = (15, 25, 50)
COLUMNS = ("network", "widths", "parameters", "steps", "train_s", "forward_s", *(f"psnr_{level}" for level in LEVELS))
SHIPPED, LARGEST = "natural", "drunet"


def weights(folder: Path, name: str) -> Path:
    """The file that a training ends with."""
    return folder / name.replace(" ", "_") / "size.safetensors"


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
    """Forward and backward of one batch of the config, without the optimiser's part."""
    run = torch.compile(network.train().requires_grad_(True))
    x, level = torch.randn(16, 3, 64, 64).contiguous(memory_format=torch.channels_last), torch.zeros(16)

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x, level).square().mean()
        loss.backward()

    return call


def seconds(networks: dict[str, DiffusionPrior], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of a forward, DRUNet's too, on all threads, and of a step of training on one."""
    # The U-Net's first layer and skip path are of float32 and take the image as it is.
    x = photograph().contiguous(memory_format=torch.channels_last)
    with_level = torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1).to(torch.bfloat16, memory_format=torch.channels_last)
    calls = {name: forward(lay_out(p.network.eval(), "bfloat16")[0], x, torch.zeros(1)) for name, p in networks.items()}
    calls[LARGEST] = forward(lay_out(DRUNetwork(3).eval(), "bfloat16")[0], with_level)
    forwards = timed(calls, repeats)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = {name: p for name, p in networks.items() if name != SHIPPED}
        return forwards, timed({name: training_step(p.network) for name, p in trained.items()}, repeats)
    finally:
        torch.set_num_threads(threads)


def measure(paths: Sequence[Path], folder: Path, repeats: int) -> list[rows.Row]:
    """One row a network.

    Raises:
        SystemExit: a network is not trained yet.
    """
    missing = [name for name in SIZES if not weights(folder, name).exists()]
    if missing:
        raise SystemExit(f"Not trained yet: {', '.join(missing)}. Run `python -m benchmarks.sizes train IMAGES` first.")
    networks = {name: priors.load_natural(weights(folder, name)) for name in SIZES}
    networks[SHIPPED] = priors.load_natural()
    levels = {name: {f"psnr_{n}": f"{mean_psnr(p, paths, n):.3f}" for n in LEVELS} for name, p in networks.items()}
    forwards, steps = seconds(networks, repeats)
    made = []
    for name, prior in networks.items():
        config: Any = prior.network.config
        row = {"network": name, "widths": " ".join(map(str, config["widths"]))}
        row["parameters"] = str(sum(p.numel() for p in prior.network.parameters()))
        if name in SIZES:
            row |= {"steps": str(SIZES[name][1]), "train_s": f"{steps[name]:.3f}"}
        made.append(row | {"forward_s": f"{forwards[name]:.4f}"} | levels[name])
    made.append({"network": LARGEST, "forward_s": f"{forwards[LARGEST]:.4f}"})
    return made


def draw(found: Sequence[rows.Row]) -> Figure:
    """One panel a noise level: the networks trained alike as a line, the one that ships, and the limit of its time."""
    figure = Figure(figsize=(9.5, 3.2), dpi=120, layout="constrained")
    by_name = {row["network"]: row for row in found}
    limit = 250 * float(by_name[LARGEST]["forward_s"])
    for axes, level in zip(figure.subplots(1, len(LEVELS)), LEVELS, strict=True):
        line = [(1000 * float(by_name[n]["forward_s"]), float(by_name[n][f"psnr_{level}"])) for n in SIZES]
        axes.plot(*zip(*line, strict=True), "o-", color="C0", label="20 minutes of one core")
        ships = by_name[SHIPPED]
        point = 1000 * float(ships["forward_s"]), float(ships[f"psnr_{level}"])
        axes.plot(*point, "o", color="C3", label="the one that ships")
        axes.axvline(limit, color="0.6", linestyle="--", linewidth=0.8, label="a quarter of DRUNet's time")
        axes.set_title(f"sigma {level}/255", fontsize=9)
        axes.set_xlabel("ms per 256x256 forward", fontsize=8)
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("PSNR on CBSD68, dB", fontsize=8)
    figure.axes[0].legend(fontsize=7, loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="PSNR and time of networks of several sizes.")
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("images", type=Path, help="training images, or the photographs to measure on")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "runs" / "size", help="of the trained networks")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.what == "train":
        train(given.images.resolve(), given.folder.resolve())
        return
    paths = sorted(given.images.glob("*.png"))
    if not paths:
        raise SystemExit(f"No PNG images in {given.images}: expected a folder such as CBSD68.")
    found = measure(paths, given.folder, given.repeats)
    rows.write(given.out, COLUMNS, found)
    draw(found).savefig(HERE.parent / "docs" / "sizes.png")
    for row in found:
        print(*row.values())


if __name__ == "__main__":
    main()
