"""Diffusion networks in the prior slot: EDM preconditioning, its skip path in float32, and the prior that ships.

With the image centred, x - 0.5, the denoiser of Karras et al. 2022, eq. 7, is

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma)).

The network F runs in bfloat16 and channels_last where the hardware gains from it. The skip path stays in float32: c_out
is about sigma for small sigma, so the rounding of F is scaled by sigma and never exceeds a small part of the noise.
"""

from __future__ import annotations

import copy
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..record import weight_hash
from .base import Prior, lies_on
from .parametrization import input_scale, scalings
from .precision import lay_out
from .unet import UNet

__all__ = ["DiffusionPrior", "edm_scalings", "load_natural"]


def edm_scalings(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, table 1, for images of standard deviation sigma_data."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4


class DiffusionPrior(Prior):
    """A U-Net of this package with its preconditioning as a prior for images of any size.

    Args:
        network: f, called as network(c_in x, log(sigma) / 4) on images whose sides are multiples of `network.stride`.
        sigma_data: standard deviation of the training images, image units.
        sigma_range: noise levels it was trained on.
        name: what messages call it.
        parametrization: what f predicts, one of `parametrization.KINDS`, of the image minus 0.5 in image units.
        precision: "auto" (see `precision.resolve`), "float32" or "bfloat16": what the network computes in.
        card: what the network learned from, kept for the record.

    Raises:
        ValueError: for an unknown precision or parametrisation.
    """

    def __init__(
        self,
        network: UNet,
        *,
        sigma_data: float,
        sigma_range: tuple[float, float],
        name: str = "diffusion",
        parametrization: str = "F",
        precision: str = "auto",
        card: dict[str, Any] | None = None,
    ) -> None:
        scalings(parametrization, 1.0)
        self.network = network.eval().requires_grad_(False)
        self.sigma_data = sigma_data
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.channels = network.channels
        self.name = name
        self.parametrization = parametrization
        self.card = card
        self._wanted = precision
        self._settle(compile=False)

    @property
    def receptive_radius(self) -> int:
        """Pixels beyond which an input pixel cannot change an output pixel."""
        return self.network.receptive_radius

    @property
    def sha256(self) -> str:
        """The SHA-256 of the names and values of the weights, the one that records hold."""
        return str(weight_hash(self))

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool = False,
    ) -> DiffusionPrior:
        """A copy on another device, in another precision, or compiled.

        Args:
            device: where the network computes.
            dtype: ignored, as the network answers in its input's dtype.
            precision: "auto", "float32" or "bfloat16"; what was asked for before where left out.
            compile: run the network through `torch.compile`: half a minute for the first image of a size, and results
                that differ in the last bits.

        Raises:
            ValueError: for an unknown precision.
        """
        here = next(self.network.parameters()).device
        stays = device is None or lies_on(here, device)
        if stays and precision in (None, self._wanted) and not compile:
            return self
        clone = copy.copy(self)
        if not stays:
            clone.network = copy.deepcopy(self.network).to(device)
        clone._wanted = precision or self._wanted
        clone._settle(compile)
        return clone

    def _settle(self, compile: bool) -> None:
        """Lay out the network that computes; `network` keeps the weights as they came, for the hash and other uses."""
        self._run, self._dtype = lay_out(self.network, self._wanted, compile=compile)
        self.precision = str(self._dtype).removeprefix("torch.")

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """skip x + out f(c_in x, log(sigma) / 4), padded to a multiple of the network's stride and cropped."""
        stride = self.network.stride
        height, width = x.shape[-2:]
        down, right = -height % stride, -width % stride
        centred = x.float() - 0.5
        if down or right:
            # Repeated edges need no image larger than the pad, as reflection would.
            centred = nn.functional.pad(centred, (0, right, 0, down), mode="replicate")
        # The network never saw sigma = 0, where log sigma has no value and D(x) = x.
        level = sigma.float().clamp_min(max(self.sigma_range[0], 1e-6))
        skip, out = scalings(self.parametrization, level, self.sigma_data)
        scale = input_scale("edm", level, self.sigma_data)
        skip, out, scale = (factor.float()[:, None, None, None] for factor in (skip, out, scale))
        wide = torch.promote_types(self._dtype, torch.float32)
        inner = (scale * centred).to(wide, memory_format=torch.channels_last)
        output = self._run(inner, level.log() / 4).float()
        clean = skip * centred + out * output + 0.5
        return clean[..., :height, :width].to(x.dtype)


def load_natural(path: str | Path | None = None, *, precision: str = "auto") -> DiffusionPrior:
    """The diffusion prior of natural colour images that ships with the package, or another file of the same kind.

    Args:
        path: a `.safetensors` file written by `experiments.train`; the shipped one where left out.
        precision: "auto", "float32" or "bfloat16".

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it holds no U-Net of ours.

    >>> prior = load_natural()
    >>> prior(torch.full((1, 3, 30, 21), 0.5), 0.1).shape
    torch.Size([1, 3, 30, 21])
    """
    from .weights import read_prior

    file = Path(path) if path is not None else Path(str(resources.files("invdiff.priors") / "natural.safetensors"))
    state, config, card = read_prior(file)
    if "kind" in config:
        kind = config["kind"]
        raise ValueError(f"{file} holds a {kind} and no diffusion prior: load it with priors.load('{kind}:{file}').")
    # Layers draw their first weights, all replaced below, from the global random state.
    with torch.random.fork_rng(devices=[]):
        network = UNet(**config)
    network.load_state_dict({key: value.float() for key, value in state.items()})
    low, high = card["sigma_range"]
    name = "natural" if path is None else file.stem
    return DiffusionPrior(
        network,
        sigma_data=card["sigma_data"],
        sigma_range=(low, high),
        name=name,
        parametrization=card.get("parametrization", "F"),
        precision=precision,
        card=card,
    )
