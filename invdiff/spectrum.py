"""A power spectrum of the prior, learned from products with the denoiser's Jacobian, for preconditioning.

For stationary Gaussian images of power p the covariance of x0 given x_sigma is diagonal in Fourier coordinates,

    Cov[x0 | x_sigma] = F^H diag(sigma^2 p / (p + sigma^2)) F,

and a product J v with the Jacobian J = Cov / sigma^2 shows p. Photographs are not stationary, but near enough for a
preconditioner, which changes how fast a linear system is solved and not its solution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Spectrum"]


class Spectrum:
    """The power of each member's images by radial frequency, brightness and colour apart.

    Images of 3 channels are turned into brightness and two colours first. Anything but images (C, H, W) has one power
    for all of its values.

    Args:
        in_shape: shape of x without the batch axis.
    """

    def __init__(self, in_shape: Sequence[int]) -> None:
        self.power: Tensor | None = None
        self.forget()
        self.image = len(in_shape) == 3
        if not self.image:
            self.bands = torch.zeros(math.prod(in_shape), dtype=torch.long)
            self.count = 1
            return
        channels, height, width = in_shape
        # Rings of frequency in cycles a pixel, as wide as those of the longer side are apart.
        self.side = max(height, width)
        fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
        radius = (self.side * (fy**2 + fx**2).sqrt()).round().long()
        rings = int(radius.max()) + 1
        group = torch.arange(channels).clamp_max(1) if channels == 3 else torch.zeros(channels, dtype=torch.long)
        self.count = rings * (int(group.max()) + 1)
        self.bands = (radius + rings * group[:, None, None]).flatten()

    def assume_photographs(self, like: Tensor) -> None:
        """The power of photographs in [0, 1], 0.00625 / f^2 of (R + G + B) / sqrt(3), with f in cycles a pixel.

        Colours have a fifteenth of it, and images of one channel, or of more than three, a third in each.

        Args:
            like: the images to come, (b, C, H, W).
        """
        channels = like.shape[1]
        rings = self.count // 2 if channels == 3 else self.count
        radius = torch.arange(rings, dtype=like.dtype, device=like.device).clamp_min(0.5) / self.side
        power = 0.00625 / radius**2
        power = torch.cat([power, power / 15]) if channels == 3 else power / 3
        self.power = power.expand(like.shape[0], -1)

    def forget(self) -> None:
        """Begin to listen at a new noise level."""
        self._shared: Tensor | None = None
        self._whole: Tensor | None = None

    def listen(self, v: Tensor, product: Tensor) -> None:
        """Take note of a product J v: both (b, *in_shape)."""
        a, c = self._coordinates(v), self._coordinates(product)
        bands = self.bands.to(v.device)
        zero = torch.zeros(v.shape[0], self.count, dtype=v.dtype, device=v.device)
        shared = zero.index_add(1, bands, (a.conj() * c).real.flatten(1))
        whole = zero.index_add(1, bands, (a.conj() * a).real.flatten(1))
        self._shared = shared if self._shared is None else self._shared + shared
        self._whole = whole if self._whole is None else self._whole + whole

    def learn(self, sigma: float) -> None:
        """The power from the shares J = p / (p + sigma^2) of what was heard at this noise level."""
        if self._shared is None or self._whole is None:
            return
        tiny = torch.finfo(self._shared.dtype).tiny
        share = (self._shared / self._whole.clamp_min(tiny)).clamp(1e-8, 1 - 1e-6)
        self.power = sigma**2 * share / (1 - share)

    def covariance(self, v: Tensor, sigma: float) -> Tensor:
        """A product with the covariance that the power gives at this noise level, (b, *in_shape)."""
        assert self.power is not None
        weight = (self.power * sigma**2 / (self.power + sigma**2))[:, self.bands.to(v.device)]
        coordinates = self._coordinates(v)
        return self._image(weight.reshape(coordinates.shape) * coordinates, v)

    def _coordinates(self, v: Tensor) -> Tensor:
        if not self.image:
            return v
        return torch.fft.rfft2(self._turned(v), norm="ortho")

    def _image(self, coordinates: Tensor, like: Tensor) -> Tensor:
        if not self.image:
            return coordinates
        return self._turned(torch.fft.irfft2(coordinates, s=like.shape[-2:], norm="ortho"), back=True)

    def _turned(self, v: Tensor, back: bool = False) -> Tensor:
        if v.shape[1] != 3:
            return v
        rows = [[3**-0.5] * 3, [2**-0.5, -(2**-0.5), 0.0], [6**-0.5, 6**-0.5, -2 * 6**-0.5]]
        turn = torch.tensor(rows, dtype=v.dtype, device=v.device)
        return torch.einsum("ij,bjhw->bihw", turn.T if back else turn, v)
