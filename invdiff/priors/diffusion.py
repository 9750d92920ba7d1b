"""Diffusion networks in the prior slot: EDM preconditioning, its skip path in float32, and the prior that ships.

With the image centred, x - 0.5, the denoiser of Karras et al. 2022, eq. 7, is

    D(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma)).

The network F runs in bfloat16 and channels_last where the hardware gains from it. The skip path stays in float32: c_out
is about sigma for small sigma, so the rounding of F is scaled by sigma and never exceeds a small part of the noise.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..record import weight_hash
from .parametrization import input_scale, scalings
from .precision import NetworkPrior
from .unet import UNet

__all__ = ["DiffusionPrior", "load_natural"]


class DiffusionPrior(NetworkPrior):
    """A U-Net of this package with its preconditioning as a prior for images of any size.

    Args:
        network: f, called as network(c_in x, log(sigma) / 4) on images whose sides are multiples of `network.stride`;
            the prior computes with a copy of it.
        sigma_data: standard deviation of the training images, image units.
        sigma_range: noise levels it was trained on.
        name: what messages call it.
        parametrization: what f predicts, one of `parametrization.KINDS`, of the image minus 0.5 in image units.
        precision: "auto" (see `precision.resolve`), "float32", "bfloat16" or "float64": what the network computes in.
        card: what the network learned from, kept for the record.

    Raises:
        ValueError: for an unknown precision or parametrisation.
    """

    network: UNet

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
        super().__init__(network, precision=precision)
        self.sigma_data = sigma_data
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.channels = network.channels
        self.name = name
        self.parametrization = parametrization
        self.card = card

    @property
    def receptive_radius(self) -> int:
        """Pixels beyond which an input pixel cannot change an output pixel."""
        return self.network.receptive_radius

    @property
    def stride(self) -> int:
        """An image cut at multiples of this many pixels is treated as the whole image is, away from the cut."""
        return self.network.stride

    @property
    def sha256(self) -> str:
        """The SHA-256 of the names and values of the weights, the one that records hold."""
        return str(weight_hash(self))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """skip x + out f(c_in x, log(sigma) / 4), padded to a multiple of the network's stride and cropped."""
        stride = self.network.stride
        height, width = x.shape[-2:]
        down, right = -height % stride, -width % stride
        # The network computes in its own precision; around it nothing is coarser than float32 or the image.
        wide = torch.promote_types(self._dtype, torch.float32)
        outer = torch.promote_types(x.dtype, wide)
        # One layout from here to the end: sums of tensors that lie differently in memory take several times as long.
        centred = x.to(outer, memory_format=self.layout) - 0.5
        if down or right:
            # Repeated edges need no image larger than the pad, as reflection would.
            centred = nn.functional.pad(centred, (0, right, 0, down), mode="replicate")
        # The network never saw sigma = 0, where log sigma has no value and D(x) = x.
        level = sigma.to(outer).clamp_min(max(self.sigma_range[0], 1e-6))
        skip, out = scalings(self.parametrization, level, self.sigma_data)
        scale = input_scale("edm", level, self.sigma_data)
        skip, out, scale = (factor.to(outer)[:, None, None, None] for factor in (skip, out, scale))
        inner = (scale * centred).to(wide, memory_format=self.layout)
        output = self._run(inner, level.log() / 4).to(outer)
        clean = torch.addcmul(skip * centred, out, output) + 0.5
        return clean[..., :height, :width].to(x.dtype).contiguous()


def load_natural(path: str | Path | None = None, *, precision: str = "auto") -> DiffusionPrior:
    """The diffusion prior of natural colour images that ships with the package, or another file of the same kind.

    Args:
        path: a `.safetensors` file written by `experiments.train`; the shipped one where left out.
        precision: "auto", "float32" or "bfloat16".

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it holds no U-Net of ours, or is the checkpoint of a training run.

    >>> prior = load_natural()
    >>> prior(torch.full((1, 3, 30, 21), 0.5), 0.1).shape
    torch.Size([1, 3, 30, 21])
    """
    from .weights import fill, read_prior

    file = Path(path) if path is not None else Path(str(resources.files("invdiff.priors") / "natural.safetensors"))
    if file.suffix == ".pt" and file.is_file():
        beside = sorted(other.name for other in file.parent.glob("[!.]*.safetensors"))
        weights = beside[0] if len(beside) == 1 else "NAME.safetensors"
        raise ValueError(
            f"{file} looks like the checkpoint that training goes on from; the prior is {weights} in the same folder: "
            f"load that."
        )
    state, config, card = read_prior(file)
    if "kind" in config:
        kind = config["kind"]
        raise ValueError(f"{file} holds a {kind} and no diffusion prior: load it with priors.load('{kind}:{file}').")
    try:
        # Layers draw their first weights, all replaced below, from the global random state.
        with torch.random.fork_rng(devices=[]):
            network = UNet(**config)
        (low, high), sigma_data = card["sigma_range"], card["sigma_data"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file} holds no U-Net of this package: {error} in its network or card.") from error
    fill(network, {key: value.float() for key, value in state.items()}, file)
    name = "natural" if path is None else file.stem
    return DiffusionPrior(
        network,
        sigma_data=sigma_data,
        sigma_range=(low, high),
        name=name,
        parametrization=card.get("parametrization", "F"),
        precision=precision,
        card=card,
    )
