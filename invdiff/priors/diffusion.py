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
from .unet import UNet

__all__ = ["DiffusionPrior", "edm_scalings", "load_natural"]


def edm_scalings(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, table 1, for images of standard deviation sigma_data."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4


class DiffusionPrior(Prior):
    """A U-Net with EDM preconditioning as a prior for images of any size.

    Args:
        network: F, called as network(x, c_noise) on images whose sides are multiples of `network.stride`.
        sigma_data: standard deviation of the training images, image units.
        sigma_range: noise levels it was trained on.
        name: what messages call it.
        precision: "auto" (bfloat16 where the processor has units for it), "float32" or "bfloat16".
        card: what the network learned from, kept for the record.

    Raises:
        ValueError: for an unknown precision.
    """

    def __init__(
        self,
        network: UNet,
        *,
        sigma_data: float,
        sigma_range: tuple[float, float],
        name: str = "diffusion",
        precision: str = "auto",
        card: dict[str, Any] | None = None,
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision is {precision!r}: expected auto, float32 or bfloat16.")
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sigma_data = sigma_data
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.channels = network.channels
        self.name = name
        self.precision = precision
        self.card = card

    @property
    def receptive_radius(self) -> int:
        """Pixels beyond which an input pixel cannot change an output pixel."""
        return self.network.receptive_radius

    @property
    def sha256(self) -> str:
        """The SHA-256 of the names and values of the weights, the one that records hold."""
        return str(weight_hash(self))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DiffusionPrior:
        """A copy on another device; the network answers in its input's dtype, so `dtype` changes nothing."""
        if device is None or lies_on(next(self.network.parameters()).device, device):
            return self
        clone = copy.copy(self)
        clone.network = copy.deepcopy(self.network).to(device)
        return clone

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """c_skip x + c_out F(c_in x, c_noise), padded to a multiple of the network's stride and cropped."""
        stride = self.network.stride
        height, width = x.shape[-2:]
        down, right = -height % stride, -width % stride
        centred = x.float() - 0.5
        if down or right:
            # Repeated edges need no image larger than the pad, as reflection would.
            centred = nn.functional.pad(centred, (0, right, 0, down), mode="replicate")
        # The network never saw sigma = 0, where log sigma has no value and D(x) = x.
        level = sigma.float().clamp_min(max(self.sigma_range[0], 1e-6))[:, None, None, None]
        c_skip, c_out, c_in, c_noise = edm_scalings(level, self.sigma_data)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._half(x.device)):
            inner = (c_in * centred).contiguous(memory_format=torch.channels_last)
            output = self.network(inner, c_noise.flatten()).float()
        clean = c_skip * centred + c_out * output + 0.5
        return clean[..., :height, :width].to(x.dtype)

    def _half(self, device: torch.device) -> bool:
        if self.precision != "auto":
            return self.precision == "bfloat16"
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported()
        units = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


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
    # Layers draw their first weights, all replaced below, from the global random state.
    with torch.random.fork_rng(devices=[]):
        network = UNet(**config)
    network.load_state_dict({key: value.float() for key, value in state.items()})
    low, high = card["sigma_range"]
    name = "natural" if path is None else file.stem
    return DiffusionPrior(
        network, sigma_data=card["sigma_data"], sigma_range=(low, high), name=name, precision=precision, card=card
    )
