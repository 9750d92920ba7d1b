"""The network of the DDPMs of digits, written as a user would from the names in the file, and what it was told."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn

from invdiff.priors import Prior, from_network, load_state_dict


def _block(taken: int, made: int) -> nn.Module:
    block = nn.Module()
    block.net = nn.Sequential(nn.Conv2d(taken, made, 7, padding=3), nn.LayerNorm((made, 28, 28)), nn.GELU())
    return block


class Network(nn.Module):
    """Five convolutions for 28x28 pixels; the time enters after the first."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32, 16)
        blocks: list[nn.Module] = [_block(widths[k], widths[k + 1]) for k in range(4)]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(16, 1, 3, padding=1)])
        layers: list[nn.Module] = [nn.Linear(32, 128)]
        for made in (128, 128, 16):
            layers += [nn.GELU(), nn.Linear(128, made)]
        self.time_embed = nn.Sequential(*layers)
        self.register_buffer("frequencies", torch.zeros(16))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        time = self.time_embed(torch.cat([phase.sin(), phase.cos() - 1], dim=1))
        h = self.blocks[0].net(x) + time[:, :, None, None]  # type: ignore[operator, union-attr]
        for block in self.blocks[1:4]:
            h = block.net(h)  # type: ignore[operator, union-attr]
        return self.blocks[4](h)


def digits_prior(path: Path, **changes: object) -> Prior:
    """The DDPM in the file: eps of 28x28 digits in [-0.5, 0.5], told the step over 1000."""
    state = load_state_dict(path)
    with torch.random.fork_rng(devices=[]):
        network = Network()
    network.load_state_dict({key.removeprefix("gt."): value for key, value in state.items() if key.startswith("gt.")})
    options: dict[str, object] = {
        "predicts": "eps",
        "alphas_bar": state["alpha_t"],
        "data_range": (-0.5, 0.5),
        "time": lambda t: t / 1000,
        "size": (28, 28),
    }
    return from_network(network, **(options | changes))  # type: ignore[arg-type]


def digits(data: Path, count: int) -> Tensor:
    """The first test digits, (count, 1, 28, 28) in [0, 1]."""
    raw = gzip.decompress((data / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 784 * count]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 1, 28, 28) / 255.0
