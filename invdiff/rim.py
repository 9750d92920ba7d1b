"""The rim of an image that its measurement does not show: what a blur brought in from beyond the picture's borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rim"]


@dataclass(frozen=True)
class Rim:
    """How many rows above and below, and columns at either side, lie outside of what was measured.

    The spread there is that of the prior: it would fill a colour scale by itself, and leave the rest of a map dark.

    >>> Rim.of({"operator": {"boundary": "valid", "in_shape": [3, 20, 20], "out_shape": [3, 16, 18]}})
    Rim(rows=2, columns=1)
    """

    rows: int = 0
    columns: int = 0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Rim:
        """That of draws with this record: none but for a blur with the boundary "valid"."""
        operator = record.get("operator")
        if not isinstance(operator, Mapping) or operator.get("boundary") != "valid":
            return cls()
        # Of an even PSF one side has a pixel more; both are left out.
        rows, columns = (
            (whole - seen + 1) // 2
            for whole, seen in zip(operator["in_shape"][-2:], operator["out_shape"][-2:], strict=True)
        )
        return cls(rows, columns)

    def __bool__(self) -> bool:
        return self.rows > 0 or self.columns > 0

    @property
    def width(self) -> int:
        """Of its wider sides, in pixels."""
        return max(self.rows, self.columns)

    @property
    def words(self) -> str:
        """What a picture says of its colours; nothing where there is no rim."""
        if not self:
            return ""
        return f"colours scaled without the rim of {self.width} pixels, which was not measured"

    def inside(self, image: Tensor) -> Tensor:
        """A view of the part of (..., H, W) that was measured."""
        height, width = image.shape[-2:]
        return image[..., self.rows : height - self.rows, self.columns : width - self.columns]

    def without(self, image: Tensor) -> Tensor:
        """A copy of (..., H, W) with zeros in the rim."""
        out = torch.zeros_like(image)
        self.inside(out).copy_(self.inside(image))
        return out

    def around(self, measured: Tensor, image: Tensor, value: float) -> Tensor:
        """A measurement (C, h, w) where it lies in an image (C, H, W), with one value around it."""
        out = measured.new_full((measured.shape[0], *image.shape[-2:]), value)
        # The centre of an even PSF of k pixels is k // 2, so that the smaller half lies before.
        top, left = ((whole - seen) // 2 for whole, seen in zip(image.shape[-2:], measured.shape[-2:], strict=True))
        out[..., top : top + measured.shape[-2], left : left + measured.shape[-1]] = measured
        return out
