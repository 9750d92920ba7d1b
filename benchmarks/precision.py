"""What the precision of a network costs and gains: `python -m benchmarks.precision`.

One 3x256x256 image through the network of the shipped prior and through DRUNet, DnCNN and FFDNet of random weights,
interleaved in one process, forward and forward + backward (with respect to the image):

    float32           the network as PyTorch makes it: float32, channels first, eager
    bfloat16          what `precision="auto"` uses where the hardware gains: bfloat16, channels last
    bfloat16+compile  the same through `torch.compile`

Reported are the median of the repeats, the ratio to float32, and for the shipped prior the change of the PSNR of a
denoised photograph. `overhead` is the share of a bfloat16 forward of the prior that is not its network: the pad and
crop of a 253x251 image, casts, layout, and the skip path.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from skimage import data
from torch import Tensor, nn

from invdiff import priors
from invdiff.metrics import psnr
from invdiff.priors.cnn import DRUNetwork
from invdiff.priors.diffusion import DiffusionPrior
from invdiff.priors.precision import lay_out

SIGMAS = (0.002, 0.003, 0.004, 0.005, 0.007, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0)


def photograph() -> Tensor:
    """(1, 3, 256, 256), the face of scikit-image's astronaut."""
    return torch.from_numpy(data.astronaut()[:256, 96:352].copy()).permute(2, 0, 1)[None].float() / 255


def timed(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each call, taken in turns so that a slow minute of the machine meets all alike."""
    for call in calls.values():
        call()
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            clock = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - clock)
    return {name: sorted(values)[len(values) // 2] for name, values in spent.items()}


def forward(run: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return run(*inputs)

    return call


def backward(run: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> Callable[[], object]:
    def call() -> object:
        leaf = x.detach().requires_grad_(True)
        return torch.autograd.grad(run(leaf, *rest).square().sum(), leaf)

    return call


def plain(widths: list[int]) -> nn.Module:
    """A stack of 3x3 convolutions and ReLUs with these channels from input to output."""
    layers: list[nn.Module] = []
    for taken, made in itertools.pairwise(widths):
        layers += [nn.Conv2d(taken, made, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def networks(prior: DiffusionPrior) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """The networks with the float32 input that a 256x256 image gives them."""
    x = photograph()
    level = torch.full_like(x[:, :1], 0.1)
    folded = nn.functional.pixel_unshuffle(x, 2)
    return {
        prior.name: (prior.network, (x, torch.zeros(1))),
        "dncnn": (plain([3, *[64] * 19, 3]), (x,)),
        "ffdnet": (plain([13, *[96] * 11, 12]), (torch.cat([folded, level[..., ::2, ::2]], 1),)),
        "drunet": (DRUNetwork(3), (torch.cat([x, level], 1),)),
    }


def ratios(name: str, network: nn.Module, inputs: tuple[Tensor, ...], repeats: int) -> list[dict[str, str]]:
    """One row per mode and direction."""
    frozen = network.eval().requires_grad_(False)
    dtype = torch.float32 if hasattr(network, "full_precision") else torch.bfloat16
    cast = tuple(i.to(dtype, memory_format=torch.channels_last) if i.ndim == 4 else i for i in inputs)
    modes: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "float32": (lay_out(frozen, "float32", channels_last=False)[0], inputs),
        "bfloat16": (lay_out(frozen, "bfloat16")[0], cast),
        "bfloat16+compile": (lay_out(frozen, "bfloat16", compile=True)[0], cast),
    }
    rows = []
    for direction, make in (("forward", forward), ("forward+backward", backward)):
        seconds = timed({mode: make(run, *given) for mode, (run, given) in modes.items()}, repeats)
        for mode, value in seconds.items():
            gain = seconds["float32"] / value
            row = {"what": name, "mode": mode, "pass": direction, "value": f"{value:.4f}", "ratio": f"{gain:.2f}"}
            rows.append(row)
            print(*row.values(), flush=True)
    return rows


def changes(prior: DiffusionPrior) -> list[dict[str, str]]:
    """PSNR in bfloat16 less that in float32, of the denoised photograph, per noise level: the largest of 8 noises."""
    x, rows = photograph(), []
    exact, half = prior.to(precision="float32"), prior.to(precision="bfloat16")
    for sigma in SIGMAS:
        noise = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            difference = [psnr(half(x + sigma * n, sigma), x) - psnr(exact(x + sigma * n, sigma), x) for n in noise]
        # The largest of the eight, signs and all: means of changes of both signs would look better than each.
        change = float(max(torch.cat(difference), key=abs))
        row = {"what": prior.name, "mode": "bfloat16", "pass": f"PSNR change at {sigma}", "value": f"{change:.4f}"}
        rows.append(row)
        print(*row.values(), flush=True)
    return rows


def overhead(prior: DiffusionPrior, repeats: int) -> dict[str, str]:
    """The share of a forward of the prior that its network does not take: the same with a network that costs nothing.

    The difference of two forwards, with and without the slot, would drown in their spread.
    """
    half = prior.to(precision="bfloat16")
    x, level = photograph()[..., :253, :251], torch.tensor(0.1)
    hollow = copy.copy(half)
    ready = torch.zeros(1, 3, 256, 256, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    hollow._run = lambda inner, noise: ready
    seconds = timed({"slot": forward(half, x, level), "hollow": forward(hollow, x, level)}, 3 * repeats)
    row = {"what": prior.name, "mode": "bfloat16", "pass": "overhead"}
    row["value"] = f"{seconds['hollow'] / seconds['slot']:.4f}"
    print(*row.values(), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Time networks in float32 and bfloat16.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision.csv")
    settings = parser.parse_args()
    prior = priors.load_natural()
    units = [name for name, held in torch.cpu.get_capabilities().items() if held and "bf16" in name]
    print(platform.machine(), f"{os.cpu_count()} cores, {torch.get_num_threads()} threads,", *units)
    rows = [overhead(prior, settings.repeats), *changes(prior)]
    for name, (network, inputs) in networks(prior).items():
        rows += ratios(name, network, inputs, settings.repeats)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with settings.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["what", "mode", "pass", "value", "ratio", "threads", "units", "torch"])
        writer.writeheader()
        machine = {"threads": str(torch.get_num_threads()), "units": " ".join(units), "torch": torch.__version__}
        writer.writerows(row | machine for row in rows)


if __name__ == "__main__":
    main()
