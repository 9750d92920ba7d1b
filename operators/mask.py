"""Pixels that are missing or attenuated: inpainting, demosaicking, vignetting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import as_constant, as_shape
from .spectral import Spectral

__all__ = ["Mask", "bayer_mask", "box_mask", "half_mask", "random_mask", "text_mask"]


class Mask(Spectral):
    """A x = mask * x, pixel by pixel; the measurement keeps the image's shape, s is the mask and vt the identity.

    Args:
        mask: values in [0, 1], not only 0 and 1, broadcastable to in_shape; (m, *in_shape), with one axis more, gives
            each of m members a mask of its own.
        in_shape: shape of one image, without the batch axis.

    Raises:
        ValueError: values outside [0, 1] or not finite, or a shape that does not fit in_shape.

    >>> A = Mask(torch.tensor([[1.0, 0.0], [0.5, 1.0]]), (1, 2, 2))
    >>> A @ torch.full((1, 1, 2, 2), 4.0)
    tensor([[[[4., 0.],
              [2., 4.]]]])
    """

    @property
    def complete(self) -> bool:
        return True

    def __init__(self, mask: Any, in_shape: Sequence[int]) -> None:
        in_shape = as_shape(in_shape, "Mask")
        values = as_constant(mask, "The mask")
        if values.numel() and not (float(values.min()) >= 0 and float(values.max()) <= 1):
            raise ValueError(
                f"The mask holds values from {float(values.min()):g} to {float(values.max()):g}, expected values "
                "between 0 (missing) and 1 (seen): divide it by its largest value."
            )
        per_member = values.ndim == len(in_shape) + 1
        shape = (values.shape[0], *in_shape) if per_member else in_shape
        try:
            values = values.broadcast_to(shape).contiguous()
        except RuntimeError:
            raise ValueError(
                f"The mask has the shape {tuple(values.shape)}, expected one that broadcasts to {tuple(in_shape)}, or "
                "with one axis more for the members: make it for the image's size."
            ) from None
        if per_member and values.shape[0] == 1:
            values, per_member = values[0], False
        super().__init__(in_shape, in_shape, batch=values.shape[0] if per_member else None)
        self._keep("mask", values, per_member)

    @property
    def singular(self) -> Tensor:
        return self._master("mask")

    def singular_as(self, like: Tensor) -> Tensor:
        full = super().singular_as(like)
        if len(self.in_shape) != 3:
            return full

        def build() -> Tensor:
            # What all channels share is kept once, and weights made of it are computed once.
            first = full[..., :1, :, :]
            return first.contiguous() if torch.equal(first.expand_as(full), full) else full

        return self._cached(("thin", full.dtype, like.device), build)

    def with_channels(self, channels: int) -> Spectral | None:
        mask = self._master("mask")
        if len(self.in_shape) != 3:
            return None
        first = mask[..., :1, :, :]
        if not torch.equal(first.expand_as(mask), mask):
            return None
        return Mask(first, (channels, *self.in_shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        return self._constant("mask", x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self._constant("mask", y) * y

    # Copies, so that a caller who works in place on a result never writes into the tensor that went in.
    def vt(self, x: Tensor) -> Tensor:
        return x.clone()

    def v(self, z: Tensor) -> Tensor:
        return z.clone()

    def damped_pinv(self, y: Tensor, damping: float | Tensor) -> Tensor:
        return self._damped_weight(y, damping) * y

    def damped_step(self, z: Tensor, coordinates: Tensor, damping: float | Tensor) -> Tensor:
        mask, d = self.singular_as(z), torch.as_tensor(damping, dtype=z.dtype)
        if d.numel() == 1 and not d.requires_grad and 0 < d.item() < math.inf and self._binary(mask):
            # The same bits in half the passes: what is not seen has the weight 0 whatever its gap.
            return torch.addcmul(z, mask, coordinates - z, value=(1 / (1 + d)).item())
        gap = coordinates - mask * z
        return torch.addcmul(z, self._damped_weight(gap, damping), gap)

    def _binary(self, mask: Tensor) -> bool:
        key = ("binary", mask.dtype, mask.device)
        return bool(self._cached(key, lambda: ((mask == 0) | (mask == 1)).all().cpu()))

    def ut(self, y: Tensor) -> Tensor:
        return y.clone()

    def u(self, w: Tensor) -> Tensor:
        return w.clone()


def _image_shape(in_shape: Sequence[int], name: str) -> tuple[int, int, int]:
    channels, height, width = as_shape(in_shape, name, axes=3)
    return channels, height, width


def random_mask(in_shape: Sequence[int], fraction_kept: float, per_channel: bool = False, seed: int = 0) -> Tensor:
    """A mask that keeps round(fraction_kept * H * W) pixels at random places, exactly that many.

    Args:
        in_shape: (C, H, W).
        fraction_kept: share of the pixels that are seen, in [0, 1].
        per_channel: other places in each channel; the same places in all of them when False.
        seed: of a random stream of its own; the global one is not touched.

    Raises:
        ValueError: fraction_kept outside [0, 1].

    >>> random_mask((3, 10, 10), 0.3).sum(dim=(1, 2))
    tensor([30., 30., 30.])
    """
    channels, height, width = _image_shape(in_shape, "random_mask")
    if not 0 <= fraction_kept <= 1:
        raise ValueError(f"random_mask got fraction_kept={fraction_kept}, expected 0 to 1: pass 0.3 to keep 30 %.")
    generator = torch.Generator().manual_seed(seed)
    count = round(fraction_kept * height * width)
    planes = []
    for _ in range(channels if per_channel else 1):
        plane = torch.zeros(height * width)
        plane[torch.randperm(height * width, generator=generator)[:count]] = 1.0
        planes.append(plane.reshape(height, width))
    return torch.stack(planes).expand(channels, height, width).clone()


def box_mask(in_shape: Sequence[int], box: tuple[int, int, int, int] | None = None) -> Tensor:
    """A mask that hides a rectangle.

    Args:
        in_shape: (C, H, W).
        box: (top, left, height, width) in pixels; the middle rectangle of half the size when absent.

    Raises:
        ValueError: the box does not lie inside the image.

    >>> int((box_mask((1, 8, 8)) == 0).sum())
    16
    """
    channels, height, width = _image_shape(in_shape, "box_mask")
    top, left, rows, columns = box or (height // 4, width // 4, max(height // 2, 1), max(width // 2, 1))
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
        raise ValueError(
            f"box_mask got the box (top, left, height, width) = {(top, left, rows, columns)}, expected one inside "
            f"the image of {height} x {width} pixels: move or shrink it."
        )
    mask = torch.ones(channels, height, width)
    mask[:, top : top + rows, left : left + columns] = 0.0
    return mask


def half_mask(in_shape: Sequence[int], hidden: str = "right") -> Tensor:
    """A mask that hides one half of the image.

    Args:
        in_shape: (C, H, W).
        hidden: "left", "right", "top" or "bottom"; of an odd size the middle line is seen.

    Raises:
        ValueError: another word for hidden.

    >>> half_mask((1, 1, 5))
    tensor([[[1., 1., 1., 0., 0.]]])
    """
    channels, height, width = _image_shape(in_shape, "half_mask")
    areas = {
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width - width // 2, None)),
        "top": (slice(0, height // 2), slice(None)),
        "bottom": (slice(height - height // 2, None), slice(None)),
    }
    if hidden not in areas:
        raise ValueError(f"half_mask got hidden={hidden!r}, expected one of {', '.join(areas)}: pass one of them.")
    mask = torch.ones(channels, height, width)
    mask[(slice(None), *areas[hidden])] = 0.0
    return mask


def text_mask(in_shape: Sequence[int], letter: int | None = None, stroke: float | None = None, seed: int = 0) -> Tensor:
    """A mask that hides strokes laid out like lines of writing over the whole image.

    Each letter joins random nodes of a 3 x 2 lattice by three strokes; one letter in six is a space.

    Args:
        in_shape: (C, H, W).
        letter: height of a letter in pixels; a tenth of the image's shorter side, at least 5, when absent.
        stroke: width of a stroke in pixels; a sixth of the letter, at least 1, when absent.
        seed: of a random stream of its own; the global one is not touched.

    Raises:
        ValueError: letter or stroke below one pixel.

    >>> 0.05 < float((text_mask((1, 64, 64)) == 0).float().mean()) < 0.5
    True
    """
    channels, height, width = _image_shape(in_shape, "text_mask")
    size = max(min(height, width) // 10, 5) if letter is None else letter
    thick = max(size / 6, 1.0) if stroke is None else stroke
    if size < 1 or not thick >= 1:
        raise ValueError(
            f"text_mask got letter={size}, stroke={thick}, expected at least 1 pixel each: make them larger."
        )
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.tensor([(row / 2, column) for row in range(3) for column in range(2)], dtype=torch.float64)
    half = math.ceil(thick / 2)
    letter_width, line = max(round(0.6 * size), 1), round(1.6 * size) + 2 * half
    grid = torch.stack(
        torch.meshgrid(
            torch.arange(-half, size + half, dtype=torch.float64),
            torch.arange(-half, letter_width + half, dtype=torch.float64),
            indexing="ij",
        ),
        -1,
    )
    scale = torch.tensor([size - 1, letter_width - 1], dtype=torch.float64)
    # A canvas with a margin, so that letters cut by the frame need no case of their own.
    margin = size + 2 * half + letter_width
    canvas = torch.ones(height + 2 * margin, width + 2 * margin)
    for top in range(margin + half, height + margin, line):
        for left in range(margin + half, width + margin, letter_width + 2 * half + max(size // 5, 1)):
            path = nodes[torch.randperm(6, generator=generator)[:4]] * scale
            if int(torch.randint(6, (), generator=generator)) == 0:
                continue
            tile = canvas[top - half : top + size + half, left - half : left + letter_width + half]
            for start, end in itertools.pairwise(path):
                tile[_distance(grid, start, end) <= thick / 2] = 0.0
    mask = canvas[margin : margin + height, margin : margin + width]
    return mask.expand(channels, height, width).clone()


def _distance(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance of points (..., 2) to the segment from start to end."""
    along = end - start
    length = (along @ along).clamp_min(1e-12)
    position = (((points - start) @ along) / length).clamp(0, 1)
    return torch.linalg.vector_norm(points - start - position[..., None] * along, dim=-1)


def bayer_mask(in_shape: Sequence[int], pattern: str = "RGGB") -> Tensor:
    """The mask of a Bayer sensor, which sees one of three colours at each pixel: demosaicking is Mask(bayer_mask(...)).

    Args:
        in_shape: (3, H, W).
        pattern: colours of the top left 2 x 2 pixels, row by row: "RGGB", "BGGR", "GRBG" or "GBRG".

    Raises:
        ValueError: not three channels, or an unknown pattern.

    >>> bayer_mask((3, 2, 2))[1]
    tensor([[0., 1.],
            [1., 0.]])
    """
    channels, height, width = _image_shape(in_shape, "bayer_mask")
    if channels != 3:
        raise ValueError(f"bayer_mask got {channels} channels, expected 3 (red, green, blue): pass (3, H, W).")
    if pattern not in ("RGGB", "BGGR", "GRBG", "GBRG"):
        raise ValueError(f"bayer_mask got pattern={pattern!r}, expected RGGB, BGGR, GRBG or GBRG: pass one of them.")
    mask = torch.zeros(3, height, width)
    for position, colour in enumerate(pattern):
        mask["RGB".index(colour), position // 2 :: 2, position % 2 :: 2] = 1.0
    return mask
