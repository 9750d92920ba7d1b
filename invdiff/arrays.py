"""Images from arrays and back: any layout and data range becomes a float tensor (1, C, H, W) in [0, 1]."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Alpha", "Layout", "Range", "from_array"]

Alpha = Literal["refuse", "white", "black"]
Array = NDArray[Any]
Range = float | tuple[float, float]

_RANGES = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}


@dataclass(frozen=True)
class Layout:
    """How the caller holds an image, so that a result goes back in the same form.

    Args:
        channel_axis: True for H x W x C, False for H x W.
        dtype: the array's dtype.
        data_range: the value that stands for 1 (255 for uint8, 65535 for uint16, 1 for float).
        black: the value that stands for 0, such as a camera's offset.
    """

    channel_axis: bool
    dtype: np.dtype
    data_range: float
    black: float = 0.0

    def to_array(self, image: Tensor, *, dtype: np.dtype | type | None = None, difference: bool = False) -> Array:
        """Turn (..., C, H, W) in [0, 1] into (..., H, W, C), or (..., H, W) for one channel of an H x W layout.

        Integers are rounded and clipped to what `dtype` (the layout's own by default) can hold up to the data range;
        floats are scaled only, so that a value outside [0, 1] stays visible. A difference of images, such as a standard
        deviation, is scaled without the offset of black.
        """
        if image.ndim > 3:
            # One image at a time: copies of an ensemble in float64 would take more memory than its restoration.
            return np.stack([self.to_array(part, dtype=dtype, difference=difference) for part in image])
        values = image.detach().to("cpu", torch.float64).numpy() * (self.data_range - self.black)
        values += 0.0 if difference else self.black
        values = np.moveaxis(values, -3, -1)
        if values.shape[-1] == 1 and not self.channel_axis:
            values = values[..., 0]
        target = np.dtype(self.dtype if dtype is None else dtype)
        if np.issubdtype(target, np.integer):
            top = min(self.data_range, float(np.iinfo(target).max))
            values = np.rint(values.clip(0.0, top))
        return values.astype(target)


def from_array(
    array: Any, *, data_range: Range | None = None, alpha: Alpha = "refuse", name: str = "image"
) -> tuple[Tensor, Layout]:
    """Return an image as a float32 tensor (1, C, H, W) in units of its data range, and the layout to go back.

    Args:
        array: H x W or H x W x C with C = 1 or 3 (2 or 4 with an alpha channel, which comes last): uint8, uint16 or
            float; any other number type with its data_range stated.
        data_range: the value that stands for 1, or those of 0 and 1 (a camera's offset and white); 255, 65535 and 1 by
            default. Floats without one are refused when they leave [-1, 2], since they are then hardly in [0, 1].
        alpha: refuse an alpha channel, or flatten the image on "white" or "black".
        name: what messages call the image.

    Raises:
        TypeError: not an array of numbers.
        ValueError: a shape, range, alpha channel or non-finite value that is not accepted.

    >>> tensor, layout = from_array(np.full((4, 6), 51, dtype=np.uint8))
    >>> tensor.shape, round(tensor.max().item(), 3), layout.to_array(tensor[0]).shape
    (torch.Size([1, 1, 4, 6]), 0.2, (4, 6))
    """
    if isinstance(array, Tensor):
        array = array.detach().cpu().numpy()
    values = np.asarray(array)
    if values.dtype.kind not in "uif":
        raise TypeError(f"{name} has dtype {values.dtype}: expected uint8, uint16 or float; convert it first.")
    _check_shape(values, name)
    black, white = _data_range(values, data_range, name)
    layout = Layout(values.ndim == 3, values.dtype, white, black)
    planes = (np.atleast_3d(values).astype(np.float64) - black) / (white - black)
    if not np.isfinite(planes).all():
        bad = int((~np.isfinite(planes)).sum())
        raise ValueError(f"{name} holds NaN or infinite values ({bad} of {planes.size}): replace or mask them first.")
    if data_range is None and values.dtype.kind == "f" and (planes.min() < -1 or planes.max() > 2):
        raise ValueError(
            f"{name} is float with values from {planes.min():.4g} to {planes.max():.4g}, expected about 0 to 1: "
            "state its data range (255 for values up to 255)."
        )
    planes = _flatten_alpha(planes, alpha, name)
    # A copy in C order: the caller's array is neither kept nor written.
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(planes, -1, 0)[None], dtype=np.float32))
    return tensor, layout


def _check_shape(values: Array, name: str) -> None:
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}: expected H x W or H x W x C.")
    if values.ndim == 3 and values.shape[-1] > 4:
        hint = " (it looks like C x H x W: move the channels last)" if values.shape[0] <= 4 else ""
        raise ValueError(f"{name} has shape {values.shape}: expected H x W or H x W x C with 1 or 3 channels{hint}.")


def _data_range(values: Array, data_range: Range | None, name: str) -> tuple[float, float]:
    """The values that stand for 0 and 1."""
    if data_range is not None:
        ends = data_range if isinstance(data_range, tuple | list) else (0.0, data_range)
        if len(ends) != 2 or not all(isinstance(end, numbers.Real) and not isinstance(end, bool) for end in ends):
            raise TypeError(
                f"data_range is {data_range!r}: expected a number above 0, the value that means 1, or a pair, the "
                "values that mean 0 and 1."
            )
        black, white = (float(end) for end in ends)
        if not math.isfinite(white - black) or white <= black:
            above = f"{black:g}" if isinstance(data_range, tuple | list) else "0"
            raise ValueError(
                f"data_range is {data_range}: expected a finite number above {above}, the value that means 1."
            )
        return black, white
    if values.dtype.name not in _RANGES:
        raise ValueError(f"{name} has dtype {values.dtype}, whose range is not known: state data_range.")
    return 0.0, _RANGES[values.dtype.name]


def _flatten_alpha(planes: Array, alpha: Alpha, name: str) -> Array:
    if alpha not in ("refuse", "white", "black"):
        raise ValueError(f"alpha is {alpha!r}: expected 'refuse', 'white' or 'black'.")
    if planes.shape[-1] in (1, 3):
        return planes
    if bool((planes[..., -1:] == 1).all()):
        return planes[..., :-1]  # fully opaque: nothing is behind it
    if alpha == "refuse":
        raise ValueError(f"{name} has an alpha channel: flatten it on a background with alpha 'white' or 'black'.")
    opacity = planes[..., -1:]
    return planes[..., :-1] * opacity + (1.0 if alpha == "white" else 0.0) * (1 - opacity)
