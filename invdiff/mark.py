"""A small visible label in the corner of a picture, for those who never look at its metadata."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .provenance import GENERATED, Provenance

__all__ = ["marked"]

# Of the picture, its box around it included.
_MOST = 0.03
_SMALLEST, _LARGEST = 8, 64  # letters, in pixels


def marked(image: Tensor, provenance: Provenance) -> Tensor:
    """A copy of an image with "AI restored", "AI generated" or "restored" in its lower right corner.

    White letters on a black box, so that they can be read on any picture; the box covers 3 % of it at most. Pixels
    outside the box keep their bits. Measure nothing in the copy.

    Args:
        image: (C, H, W), [0, 1].
        provenance: of the picture; decides on the words, "AI" alone where there is no room for more.

    Raises:
        ValueError: the picture is too small for letters of 8 pixels, or is no image.
    """
    if image.ndim != 3:
        raise ValueError(f"The image has the shape {tuple(image.shape)}: expected (C, H, W).")
    height, width = image.shape[-2:]
    texts = ["restored"]
    if provenance.generative:
        texts = ["AI generated" if provenance.source == GENERATED else "AI restored", "AI"]
    for text in texts:
        # About a line in twenty, and smaller where the words would take too much.
        for size in range(min(_LARGEST, max(_SMALLEST, height // 20)), _SMALLEST - 1, -1):
            box = _letters(text, size)
            if box.size <= _MOST * height * width and box.shape[0] <= height and box.shape[1] <= width:
                copy = image.clone()
                copy[:, -box.shape[0] :, -box.shape[1] :] = torch.from_numpy(box).to(image)
                return copy
    raise ValueError(
        f"The picture has {width} x {height} pixels: too small for a mark that can be read and covers 3 % at most."
    )


def _letters(text: str, size: int) -> NDArray[np.float32]:
    """White letters on a black box, (h, w) in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    edge = max(1, size // 6)
    box = Image.new("L", (int(right - left) + 2 * edge, int(bottom - top) + 2 * edge))
    ImageDraw.Draw(box).text((edge - left, edge - top), text, fill=255, font=font)
    letters = np.asarray(box, np.float32)
    return letters / letters.max()  # the strokes of small letters are thinner than a pixel, and gray
