"""What is trained: a network, the loss of one batch, and the prior that its weights make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from invdiff.priors import Prior
from invdiff.priors.cnn import DnCNN, DRUNet, DRUNetwork, FFDNet, plain_stack
from invdiff.priors.diffusion import load_natural
from invdiff.priors.parametrization import input_scale, loss
from invdiff.priors.unet import UNet
from invdiff.priors.weights import load_state_dict, read_prior, save_prior

from .settings import SettingsError

__all__ = ["CNN", "Diffusion", "Objective", "build", "draw_sigma", "fill_from"]


class Objective(Protocol):
    """A network and its loss.

    Attributes:
        network: the module whose weights are trained.
        runner: what the loss calls: the network, or what torch.compile or DistributedDataParallel made of it.
        config: how to build the network again.
    """

    network: nn.Module
    runner: nn.Module
    config: dict[str, Any]

    def draw_sigma(self, size: int, generator: torch.Generator) -> Tensor:
        """Noise levels (size,), image units."""
        ...

    def losses(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """The weighted mean squared error of each member, (b,), whose mean is the loss."""
        ...

    def open(self, path: Path) -> Prior:
        """The prior of a file that `save` wrote."""
        ...

    def save(self, path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        """Write weights, network and card."""
        ...


def draw_sigma(size: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Noise levels: four in five log-normal around 0.16 (where detail is decided), one in five log-uniform."""
    narrow = (-1.8 + 1.2 * torch.randn(size, generator=generator)).exp()
    wide = (math.log(low) + (math.log(high) - math.log(low)) * torch.rand(size, generator=generator)).exp()
    pick = torch.rand(size, generator=generator) < 0.2
    return torch.where(pick, wide, narrow).clamp(low, high)


class Diffusion:
    """The U-Net of `invdiff.priors.unet` with the loss of EDM, whatever it predicts.

    With the image centred, x = x0 - 0.5 + sigma eps, the loss is weight |f(c_in x, log(sigma) / 4) - target|^2 in the
    weighting of Karras et al. 2022, eq. 8 (unit weight on F), so that all parametrisations minimise the same error of
    the image at every noise level (`invdiff.priors.parametrization`).

    Args:
        config: keyword arguments of `UNet`.
        predicts: "F", "eps", "x0", "v" or "flow".
        sigma_data: standard deviation of the images.
        sigma_range: lowest and highest noise level.
    """

    def __init__(
        self, config: Mapping[str, Any], *, predicts: str, sigma_data: float, sigma_range: tuple[float, float]
    ) -> None:
        network = UNet(**config)
        self.network: nn.Module = network
        self.runner: nn.Module = self.network
        self.config: dict[str, Any] = network.config
        self.predicts, self.sigma_data, self.sigma_range = predicts, sigma_data, sigma_range

    def draw_sigma(self, size: int, generator: torch.Generator) -> Tensor:
        return draw_sigma(size, *self.sigma_range, generator)

    def losses(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        centred = x0 - 0.5
        noisy = centred + sigma[:, None, None, None] * noise
        c_in = input_scale("edm", sigma, self.sigma_data).to(noisy)[:, None, None, None]
        output = self.runner((c_in * noisy).to(memory_format=torch.channels_last), sigma.log() / 4)
        return loss(self.predicts, output.float(), centred, noise, sigma, self.sigma_data)

    def save(self, path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        facts = {
            "sigma_data": self.sigma_data,
            "sigma_range": list(self.sigma_range),
            "channels": self.config["channels"],
            "parametrization": self.predicts,
        }
        save_prior(path, state, self.config, {**facts, **card})

    def open(self, path: Path) -> Prior:
        return load_natural(path)


class CNN:
    """A denoiser of `invdiff.priors.cnn`, trained by its mean squared error over a range of noise levels.

    The levels are uniform over the range (Zhang et al. 2017, section 3.2; Zhang et al. 2021, section 4.1).

    Args:
        kind: "dncnn", "ffdnet" or "drunet".
        config: `depth` and `width` of the first two, `widths` and `blocks` of the last.
        channels: 1 or 3.
        sigma_range: lowest and highest noise level.
    """

    def __init__(
        self, kind: str, config: Mapping[str, Any], *, channels: int, sigma_range: tuple[float, float]
    ) -> None:
        if kind == "drunet":
            self.network: nn.Module = DRUNetwork(channels, list(config["widths"]), config["blocks"])
        else:
            ends = (channels, channels) if kind == "dncnn" else (4 * channels + 1, 4 * channels)
            self.network = _new_stack(ends, config["depth"], config["width"])
        self.runner: nn.Module = self.network
        self.kind, self.sigma_range = kind, sigma_range
        self.config: dict[str, Any] = {"kind": kind, "channels": channels, **config}

    def draw_sigma(self, size: int, generator: torch.Generator) -> Tensor:
        low, high = self.sigma_range
        return low + (high - low) * torch.rand(size, generator=generator)

    def losses(self, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        noisy = x0 + sigma[:, None, None, None] * noise
        if self.kind == "dncnn":
            clean = noisy - self.runner(noisy.contiguous(memory_format=torch.channels_last)).float()
            return (clean - x0).square().flatten(1).mean(1)
        inner = pixel_unshuffle(noisy, 2) if self.kind == "ffdnet" else noisy
        level = sigma[:, None, None, None].expand(-1, 1, *inner.shape[-2:])
        output = self.runner(torch.cat([inner, level], 1).contiguous(memory_format=torch.channels_last)).float()
        clean = pixel_shuffle(output, 2) if self.kind == "ffdnet" else output
        return (clean - x0).square().flatten(1).mean(1)

    def save(self, path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        facts = {"sigma_range": list(self.sigma_range), "channels": self.config["channels"]}
        save_prior(path, state, self.config, {**facts, **card})

    def open(self, path: Path) -> Prior:
        kinds: dict[str, type[DnCNN] | type[FFDNet] | type[DRUNet]]
        kinds = {"dncnn": DnCNN, "ffdnet": FFDNet, "drunet": DRUNet}
        return kinds[self.kind].from_file(path)


def _new_stack(ends: tuple[int, int], depth: int, width: int) -> nn.Module:
    """Convolutions with the first weights of He et al. 2015, and a last one of zeros: the estimate starts as x or 0."""
    state: dict[str, Tensor] = {}
    for n in range(depth):
        taken, made = ends[0] if n == 0 else width, ends[1] if n == depth - 1 else width
        kernel = torch.zeros(made, taken, 3, 3)
        state[f"model.{2 * n}.weight"] = nn.init.kaiming_normal_(kernel) if n < depth - 1 else kernel
        state[f"model.{2 * n}.bias"] = torch.zeros(made)
    return plain_stack(state, "The network")[0]


def build(cfg: Mapping[str, Any]) -> Objective:
    """The objective of the settings, its first weights drawn from the seed and no global random state."""
    config = {key: value for key, value in cfg["network"].items() if key != "kind"}
    low, high = cfg["sigma_range"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg["seed"])
        if cfg["network"]["kind"] == "unet":
            return Diffusion(
                {"channels": cfg["channels"], **config},
                predicts=cfg["predicts"],
                sigma_data=cfg["sigma_data"],
                sigma_range=(low, high),
            )
        return CNN(cfg["network"]["kind"], config, channels=cfg["channels"], sigma_range=(low, high))


def fill_from(objective: Objective, path: str) -> None:
    """Start from the weights of an earlier file.

    Raises:
        SettingsError: the file is none of ours, or of another network.
    """
    try:
        if isinstance(objective, Diffusion):
            state, config, card = read_prior(path)
            kind = card.get("parametrization", "F")
            if config != objective.config or kind != objective.predicts:
                raise SettingsError(
                    f"init={path} is a U-Net {config} that predicts {kind}, and the settings ask for "
                    f"{objective.config} and {objective.predicts}: make them agree."
                )
        else:
            state = load_state_dict(path)
        objective.network.load_state_dict({key: value.float() for key, value in state.items()})
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"init={path} cannot be used: {str(error).splitlines()[0]}") from error
