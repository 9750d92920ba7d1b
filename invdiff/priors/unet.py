"""A fully convolutional, noise-conditioned residual U-Net without statistics over space.

Nothing in the network looks at the whole image (no group or instance norm, no attention), so a tile and the image it
was cut from agree away from the tile's edge, and any image size works after padding to a multiple of `stride`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["UNet"]


def _channel_norm(h: Tensor) -> Tensor:
    """Every pixel's feature vector scaled to unit mean square: a statistic over channels, none over space."""
    return h * (h.square().mean(1, keepdim=True) + 1e-4).rsqrt()


class _Block(nn.Module):
    """`h + conv2(silu((1 + scale) * conv1(norm(h)) + shift))`: scale and shift come from the noise level."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        # The block starts as the identity, so that depth does not disturb the first steps of training.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].to(h.dtype).chunk(2, dim=1)
        inner = self.conv1(_channel_norm(h))
        return h + self.conv2(nn.functional.silu(inner * (1 + scale) + shift))


class UNet(nn.Module):
    """Map a noisy image and a noise embedding to the network output F of Karras et al. 2022, eq. 7.

    Args:
        channels: image channels C.
        widths: feature channels of each level, finest first; each level halves the resolution.
        blocks: residual blocks per level on the way down, and again on the way up.
        embedding: width of the noise embedding.
    """

    # At small sigma the noise is finer than bfloat16's steps of the image that carries it: the first layer must see it.
    # What the noise level decides costs nothing, and its rounding would move every pixel alike.
    full_precision = ("head", "embed", "modulation")

    def __init__(
        self, channels: int = 3, widths: Sequence[int] = (48, 96, 160), blocks: int = 2, embedding: int = 128
    ) -> None:
        super().__init__()
        self.config = {"channels": channels, "widths": list(widths), "blocks": blocks, "embedding": embedding}
        self.channels = channels
        self.stride = 2 ** (len(widths) - 1)
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        # One plane of ones beside the image tells the first layer where zero padding begins.
        self.head = nn.Conv2d(channels + 1, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            self.down.append(nn.ModuleList(_Block(width, embedding) for _ in range(blocks)))
            self.up.append(nn.ModuleList(_Block(width, embedding) for _ in range(blocks)))
            if not last:
                self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.grow.append(nn.ConvTranspose2d(widths[level + 1], width, 2, stride=2))
        self.tail = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    @property
    def computes_in(self) -> torch.dtype:
        """The precision of all layers but those of `full_precision`."""
        weight: Tensor = self.down[0][0].conv1.weight  # type: ignore[index, union-attr, assignment]
        return weight.dtype

    @property
    def receptive_radius(self) -> int:
        """Pixels beyond which an input pixel cannot change an output pixel."""
        radius = 2
        for level, stack in enumerate(self.down):
            radius += 4 * len(stack) * 2**level  # type: ignore[arg-type]
        return radius + 2 * (self.stride - 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """F(x, noise) with x of shape (b, C, H, W), H and W multiples of `stride`, and noise of shape (b,)."""
        # The phases need float32, whatever the network computes in: no buffer, which `.to(dtype)` would round.
        phase = noise.float()[:, None] * (2 * math.pi * torch.logspace(-1, 0.6, 16, device=noise.device))
        embedding = self.embed(torch.cat([phase.cos(), phase.sin()], dim=1).to(self.head.weight.dtype))
        h = self.head(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        if self.computes_in == torch.bfloat16:
            h = h.bfloat16()
        skips: list[Tensor] = []
        for level, stack in enumerate(self.down):
            for block in stack:  # type: ignore[attr-defined]
                h = block(h, embedding)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
            if level > 0:
                h = self.grow[level - 1](h) + skips.pop()
        return self.tail(h)
