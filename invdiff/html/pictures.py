"""Pictures of the report as data URIs, and how much of large ones fits into it."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from .. import xmp
from ..posterior import Posterior
from ..provenance import Provenance, describe

__all__ = ["Range", "Strip", "Window", "colour_bar", "encode_draws", "gray_map", "heat_map", "picture", "rms", "top_of"]

Pixels = NDArray[np.uint8]
# As many draws as tell their distribution at a pixel; more of them would each get a smaller window.
MOST_DRAWS = 64
FEW_DRAWS = 32
# Pictures of the window's size beside the draws: mean, std, measurement, truth, error and two maps of what is invented.
OTHERS = 7
# Longest side of a picture that is shown whole where the draws are not.
REDUCED = 512


@dataclass(frozen=True)
class Range:
    """The values that are black and white; 0 and 1 but for images that plainly live elsewhere."""

    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, mean: Tensor) -> Range:
        """0 to 1, or what a mean image spans where more than one value in a hundred lies a tenth outside of that."""
        if ((mean < -0.1) | (mean > 1.1)).double().mean() <= 0.01:
            return cls()
        low, high = float(mean.min()), float(mean.max())
        return cls(low, max(high, low + 1e-6))

    @property
    def usual(self) -> bool:
        """Whether it is 0 to 1."""
        return (self.low, self.high) == (0.0, 1.0)

    def quantise(self, image: Tensor) -> Pixels:
        """(C, H, W) as H x W or H x W x 3 of 8 bits, clipped."""
        values = (image.detach().cpu().double() - self.low) / (self.high - self.low)
        pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)


@dataclass(frozen=True)
class Window:
    """The part of an image of H x W pixels that is shown at full size.

    >>> Window(8, 0, 16, 32).of(torch.zeros(3, 64, 64)).shape
    torch.Size([3, 16, 32])
    """

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Tensor) -> Tensor:
        """That part of (..., H, W)."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def whole(self, shape: tuple[int, ...]) -> bool:
        """Whether it is all of an image of this shape."""
        return (self.height, self.width) == tuple(shape[-2:])

    def measured(self, y: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """The same part of a measurement of the same size or a whole factor smaller; None where it has another size."""
        rows, columns = shape[-2] / y.shape[-2], shape[-1] / y.shape[-1]
        parts = (self.top, self.left, self.height, self.width)
        if rows != columns or not rows.is_integer() or any(part % int(rows) for part in parts):
            return y if self.whole(shape) else None
        return Window(*(part // int(rows) for part in parts)).of(y)


@dataclass(frozen=True)
class Strip:
    """The draws as the page holds them.

    Args:
        uris: one PNG for each.
        numbers: of the draws, which miss those that failed.
        window: what part of them.
    """

    uris: list[str]
    numbers: list[int]
    window: Window


def encode_draws(posterior: Posterior, std: Tensor | None, scale: Range, budget: int, align: int = 1) -> Strip:
    """The draws without loss but for 8 bits: fewer of them, and then a window, where all would be too large.

    Shrinking the draws instead would average neighbours, whose spread is smaller than that of either.

    Args:
        posterior: of images (C, H, W).
        std: (C, H, W); the window lies where it is largest, and in the middle without one.
        scale: of the values.
        budget: bytes of the data URIs of the draws, and of the other pictures of the same size.
        align: the window's edges are multiples of it.
    """
    height, width = posterior.shape[-2:]
    number, first = next(posterior.each())
    each = len(_uri(_png(scale.quantise(first), describe(posterior, number))))
    count = min(posterior.usable, MOST_DRAWS)
    count = max(min(count, FEW_DRAWS), min(count, budget // each - OTHERS))
    share = min(1.0, budget / ((count + OTHERS) * each))
    while True:
        window = _place(std, height, width, share, align)
        uris, numbers = [], []
        for number, draw in posterior.each():
            uris.append(_uri(_png(scale.quantise(window.of(draw)), describe(posterior, number))))
            numbers.append(number)
            if len(uris) == count:
                break
        size = sum(map(len, uris)) * (count + OTHERS) // count
        if size <= budget or window.height * window.width <= align**2:
            return Strip(uris, numbers, window)
        share *= 0.95 * budget / size


def _place(std: Tensor | None, height: int, width: int, share: float, align: int) -> Window:
    """The window of a share of the area, with the image's aspect, where the mean std is largest."""
    if share >= 1:
        return Window(0, 0, height, width)
    rows, columns = (max(align, int(side * math.sqrt(share)) // align * align) for side in (height, width))
    if std is None:
        return Window((height - rows) // 2 // align * align, (width - columns) // 2 // align * align, rows, columns)
    # Sums over windows from those over rectangles, as averaging window by window takes minutes for large images.
    sums = pad(rms(std).double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    within = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    within = within[::align, ::align]
    row, column = divmod(int(within.argmax()), within.shape[1])
    return Window(row * align, column * align, rows, columns)


def picture(image: Tensor, scale: Range, *, reduce: bool = False, mark: Provenance | None = None) -> str:
    """An image (C, H, W) as a data URI: PNG, or with `reduce` a JPEG of at most 512 pixels' side.

    Args:
        image: its values.
        scale: which of them are black and white.
        reduce: make it smaller.
        mark: what made it, which the picture then carries as XMP.
    """
    return _encoded(scale.quantise(image), reduce, mark)


def heat_map(values: Tensor, top: float, *, reduce: bool = False, mark: Provenance | None = None) -> str:
    """A map (H, W) from 0 to top in the colours of `colour_bar`, as a data URI; else as `picture`."""
    index = (values.detach().cpu().double() / top).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return _encoded(_colours()[index], reduce, mark)


def gray_map(fraction: Tensor) -> str:
    """A map (H, W) of values in [0, 1] as a gray PNG that the page colours."""
    return _uri(_png(Range().quantise(fraction[None])))


def colour_bar() -> str:
    """The colours of `heat_map` from left to right, a picture of 256 x 1 pixels."""
    return _uri(_png(_colours()[None]))


def rms(values: Tensor) -> Tensor:
    """The root mean square over channels, (C, H, W) -> (H, W)."""
    return values.detach().cpu().float().square().mean(0).sqrt()


def top_of(*maps: Tensor) -> float:
    """The end of a colour scale for maps (H, W): a few outliers do not make the rest black."""
    ends = []
    for values in maps:
        flat = values.flatten().sort().values
        ends.append(float(flat[int(0.995 * (len(flat) - 1))]))
    return max(*ends, 1e-4)


def _encoded(pixels: Pixels, reduce: bool, mark: Provenance | None) -> str:
    from PIL import Image

    if not reduce:
        return _uri(_png(pixels, mark))
    image = Image.fromarray(pixels)
    image.thumbnail((REDUCED, REDUCED), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return _uri(_marked(buffer.getvalue(), mark), "jpeg")


def _png(pixels: Pixels, mark: Provenance | None = None) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return _marked(buffer.getvalue(), mark)


def _marked(data: bytes, mark: Provenance | None) -> bytes:
    return data if mark is None else xmp.insert(data, mark.packet())


def _uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _colours() -> Pixels:
    """The 256 colours of the heat maps, as in `invdiff.plots`."""
    from matplotlib import colormaps

    return np.asarray((colormaps["inferno"](np.arange(256))[:, :3] * 255).round(), dtype=np.uint8)
