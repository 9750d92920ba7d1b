"""Operators by name and plain options, as a command line or a pipeline states them."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import from_array
from .images import read_array, read_image
from .operators import Blur, Downsample, Grayscale, Identity, Mask, Operator
from .operators.base import as_constant
from .operators.mask import bayer_mask, box_mask, half_mask, random_mask, text_mask
from .operators.psf import disk_psf, gaussian_psf, load_psf, motion_psf, uniform_psf

__all__ = ["OPTION_NAMES", "PSF_OPTIONS", "build_operator", "make_psf", "names", "nearest", "parse_psf"]

Shape = tuple[int, int, int]


def names() -> dict[str, str]:
    """Every operator that `build_operator` knows, with one line each.

    >>> sorted(names())
    ['bayer', 'blur', 'denoise', 'downsample', 'gray', 'mask']
    """
    return {name: kind.line for name, kind in _KINDS.items()}


def build_operator(name: str, shape: Sequence[int], *, simulate: bool = False, **options: Any) -> Operator:
    """Return the operator of that name for an image or a measurement of the given shape.

    Args:
        name: one of `names()`; "identity" is another word for "denoise", "grayscale" for "gray".
        shape: (C, H, W) of the measurement, from which the restored image's shape follows; with `simulate` of the
            image that is to be degraded.
        simulate: see shape.
        options: what the operator takes; options that are None count as not given.
            blur: psf (a file or an array) or psf_kind ("gaussian:1.5", "disk:3", "motion:9:30", "uniform:5"),
            psf_index and psf_key for files that hold several, boundary;
            downsample: factor (4), kind ("box", "bicubic", or "psf" with the PSF options);
            mask: mask (a file or an array; 1 is seen, 0 missing) or keep (0.3) and mask_kind ("random", "box", "half",
            "text"), mask_seed; gray: weights ("bt601", "bt709"); bayer: pattern ("RGGB", ...).

    Raises:
        ValueError: an unknown name, an option that this operator does not take, or one with a wrong value.

    >>> build_operator("downsample", (3, 16, 16), factor=4).in_shape
    (3, 64, 64)
    """
    key = {"identity": "denoise", "grayscale": "gray"}.get(name, name)
    if key not in _KINDS:
        raise ValueError(f"There is no operator {name!r}{nearest(name, list(_KINDS))}")
    kind = _KINDS[key]
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in kind.options:
            takes = f"it takes {', '.join(kind.options)}" if kind.options else "it takes no options"
            raise ValueError(f"The operator {key!r} has no option {option!r}: {takes}.")
    channels, height, width = shape
    return kind.build((channels, height, width), simulate, **given)


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a refusal: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name.lower(), known, 1)
    return f": did you mean {close[0]!r}?" if close else f": expected one of {', '.join(known)}."


def parse_psf(text: str) -> Tensor:
    """A PSF from KIND:NUMBERS: gaussian:SIGMA, disk:RADIUS, motion:LENGTH[:ANGLE] or uniform:SIZE (pixels, degrees).

    Raises:
        ValueError: an unknown kind, or not the numbers it takes.

    >>> parse_psf("uniform:3").shape
    torch.Size([3, 3])
    """
    kind, *words = text.split(":")
    if kind not in _PSFS:
        raise ValueError(f"There is no PSF {kind!r}{nearest(kind, list(_PSFS))}")
    make, least, most, example = _PSFS[kind]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if not least <= len(numbers) <= most:
        raise ValueError(f"The PSF is {text!r}: expected numbers after the colon, such as {example}.")
    return make(*numbers)


def _uniform(size: float) -> Tensor:
    # A size that is no whole number, infinity and NaN among them, is refused there in a sentence.
    return uniform_psf(int(size) if size.is_integer() else size)  # type: ignore[arg-type]


_PSFS: dict[str, tuple[Callable[..., Tensor], int, int, str]] = {
    "gaussian": (gaussian_psf, 1, 1, "gaussian:1.5"),
    "disk": (disk_psf, 1, 1, "disk:3"),
    "motion": (motion_psf, 1, 2, "motion:9:30"),
    "uniform": (_uniform, 1, 1, "uniform:5"),
}


def make_psf(
    psf: Any = None, psf_kind: str | None = None, psf_index: int | None = None, psf_key: str | None = None
) -> Tensor | None:
    """The PSF of the options (see `build_operator`) with sum 1, or None where none is given.

    An array is (kh, kw), or (m, kh, kw) for one PSF per member, each with sum 1.

    Raises:
        TypeError: a PSF that does not hold numbers.
        ValueError: options that exclude each other, or a PSF that is complex, not finite or of another shape.
    """
    if psf is not None and psf_kind is not None:
        raise ValueError(f"Both psf and psf_kind ({psf_kind!r}) are given: state one of them.")
    from_file = isinstance(psf, str | Path)
    for name, value in (("psf_index", psf_index), ("psf_key", psf_key)):
        if value is not None and not from_file:
            other = f"psf_kind ({psf_kind!r})" if psf_kind is not None else "no PSF file"
            raise ValueError(f"{name} is {value!r} with {other}: it chooses among the PSFs of a file, given as psf.")
    if psf_kind is not None:
        return parse_psf(psf_kind)
    if psf is None:
        return None
    if from_file:
        return load_psf(psf, index=psf_index, key=psf_key)
    kernel = as_constant(psf, "The PSF")
    if kernel.ndim not in (2, 3) or kernel.numel() == 0:
        raise ValueError(
            f"The PSF has the shape {tuple(kernel.shape)}: expected (height, width), or (members, height, width)."
        )
    total = kernel.sum((-2, -1), keepdim=True)
    return torch.where(total > 0, kernel / total, kernel)  # Blur refuses what has no positive sum, in its own words


def _blur(shape: Shape, simulate: bool, boundary: str = "circular", **psf_options: Any) -> Operator:
    kernel = make_psf(**psf_options)
    if kernel is None:
        raise ValueError("The operator 'blur' needs a PSF: give psf (a file) or psf_kind (such as gaussian:1.5).")
    channels, height, width = shape
    if boundary == "valid" and not simulate:
        # The measurement has lost a border as wide as the PSF, which the restored image has again.
        height, width = height + kernel.shape[-2] - 1, width + kernel.shape[-1] - 1
    elif kernel.shape[-2] > height or kernel.shape[-1] > width:
        raise ValueError(
            f"The PSF of {kernel.shape[-2]} x {kernel.shape[-1]} pixels is larger than the image of {height} x {width} "
            "pixels: crop the PSF, or take a larger image."
        )
    return Blur(kernel, (channels, height, width), boundary=boundary)


def _downsample(shape: Shape, simulate: bool, factor: int = 4, kind: str | None = None, **psf_options: Any) -> Operator:
    kernel = make_psf(**psf_options)
    if kind not in (None, "box", "bicubic", "psf"):
        raise ValueError(f"kind is {kind!r}: expected 'box', 'bicubic' or 'psf'.")
    if (kind == "psf" and kernel is None) or (kernel is not None and kind in ("box", "bicubic")):
        raise ValueError(
            f"kind is {kind!r} {'without' if kernel is None else 'with'} a PSF: give kind 'psf' and a PSF."
        )
    if isinstance(factor, bool) or not isinstance(factor, numbers.Integral) or factor < 1:
        raise ValueError(f"factor is {factor!r}: expected a whole number from 1 on.")
    factor = int(factor)  # also from numpy's integers
    channels, height, width = shape
    in_shape = shape if simulate else (channels, height * factor, width * factor)
    form = kernel if kernel is not None else kind or "box"
    return Downsample(factor, in_shape, kind=form)


def _mask(
    shape: Shape,
    simulate: bool,
    mask: Any = None,
    keep: float | None = None,
    mask_kind: str | None = None,
    mask_seed: int = 0,
) -> Operator:
    if mask is not None and (keep is not None or mask_kind is not None):
        raise ValueError("Both a mask and keep or mask_kind are given: state one of them.")
    if mask is None:
        values = _made_mask(shape, keep, mask_kind or "random", mask_seed)
    elif isinstance(mask, (str, Path)):
        values = _mask_file(Path(mask))
        if values.shape[0] != 1 and values.shape[0] != shape[0] and torch.equal(values, values[:1].expand_as(values)):
            values = values[:1]  # a black and white picture saved in colour
        if values.shape[1:] != shape[1:]:
            raise ValueError(
                f"The mask {mask} has {values.shape[1]} x {values.shape[2]} pixels and the image {shape[1]} x "
                f"{shape[2]}: make it for the image's size."
            )
    else:
        values = torch.as_tensor(mask)
    if not bool((values > 0).any()):
        raise ValueError("The mask is 0 everywhere, so that nothing is measured: 1 means seen, 0 missing.")
    return Mask(values, shape)


def _mask_file(path: Path) -> Tensor:
    """The mask in a file, (C, H, W) of 0 and 1; a `.npy` of floats may hold gains in between.

    Raises:
        ValueError: a picture with greys, which are the rim of an antialiased or JPEG mask and no gains.
    """
    if path.suffix.lower() == ".npy":
        array = read_array(path)
        return from_array(array.astype(np.uint8) * 255 if array.dtype == bool else array, name=str(path))[0][0]
    values = read_image(path)[0]
    greys = int(((values > 0) & (values < 1)).sum())
    if greys:
        raise ValueError(
            f"The mask {path} has {greys} grey values: expected white (seen) and black (missing) alone; threshold it, "
            "or give gains from 0 to 1 as a float .npy."
        )
    return values


def _made_mask(shape: Shape, keep: float | None, kind: str, seed: int) -> Tensor:
    if kind == "random":
        return random_mask(shape, 0.3 if keep is None else keep, seed=seed)
    if keep is not None:
        raise ValueError(f"keep is {keep}: only the random mask takes it, mask_kind is {kind!r}.")
    if kind == "box":
        return box_mask(shape)
    if kind == "half":
        return half_mask(shape)
    if kind == "text":
        return text_mask(shape, seed=seed)
    raise ValueError(f"There is no mask {kind!r}{nearest(kind, ['random', 'box', 'half', 'text'])}")


def _gray(shape: Shape, simulate: bool, weights: str = "bt601") -> Operator:
    channels, height, width = shape
    if simulate and channels != 3:
        raise ValueError(f"The image has {channels} channel: the operator 'gray' takes a colour image.")
    if not simulate and channels != 1:
        raise ValueError(
            f"The measurement has {channels} channels: the operator 'gray' measures one; "
            "give a gray image, or simulate it from the colour image."
        )
    return Grayscale((3, height, width), weights=weights)


def _bayer(shape: Shape, simulate: bool, pattern: str = "RGGB") -> Operator:
    channels, height, width = shape
    if simulate and channels != 3:
        raise ValueError(f"The image has {channels} channel: the operator 'bayer' takes a colour image.")
    return Mask(bayer_mask((3, height, width), pattern.upper()), (3, height, width))


def _denoise(shape: Shape, simulate: bool) -> Operator:
    return Identity(shape)


@dataclass(frozen=True)
class _Kind:
    line: str
    build: Callable[..., Operator]
    options: tuple[str, ...]


PSF_OPTIONS = ("psf", "psf_kind", "psf_index", "psf_key")
_KINDS = {
    "blur": _Kind("convolution with a PSF, from a file or a formula", _blur, (*PSF_OPTIONS, "boundary")),
    "downsample": _Kind(
        "reduction by a whole factor: box average, bicubic, or a PSF", _downsample, ("factor", "kind", *PSF_OPTIONS)
    ),
    "mask": _Kind(
        "missing pixels: a mask from a file, random, box, half or text",
        _mask,
        ("mask", "keep", "mask_kind", "mask_seed"),
    ),
    "gray": _Kind("a gray image of a colour scene, to be coloured", _gray, ("weights",)),
    "denoise": _Kind("noise alone", _denoise, ()),
    "bayer": _Kind("one colour per pixel, as a sensor sees it", _bayer, ("pattern",)),
}
OPTION_NAMES = tuple(dict.fromkeys(option for kind in _KINDS.values() for option in kind.options))
