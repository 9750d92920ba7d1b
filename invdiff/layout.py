"""How the arrays of an ensemble's folder are written; `invdiff.store` says what they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .operators import Operator
from .record import own_constants

if TYPE_CHECKING:
    import zarr

__all__ = ["array", "axes", "consolidate", "constant", "constants", "plain"]


def array(root: zarr.Group, name: str, dtype: str, dims: Sequence[str], fill: Any, **layout: Any) -> zarr.Array:
    """An array without compression, so that parts of a chunk can be read in place, but with a checksum."""
    from zarr.codecs import Crc32cCodec

    return root.create_array(
        name, dtype=dtype, fill_value=fill, dimension_names=dims, compressors=[Crc32cCodec()], **layout
    )


def constant(
    root: zarr.Group,
    name: str,
    value: Tensor,
    dims: Sequence[str] | None = None,
    attributes: dict[str, Any] | None = None,
) -> None:
    """An array in one chunk, in place of one whose writing was interrupted."""
    data = plain(value).numpy()
    names = dims or [f"{name.rpartition('/')[2]}_{axis}" for axis in range(data.ndim)]
    array(
        root,
        name,
        str(data.dtype),
        names,
        0,
        shape=data.shape,
        chunks=tuple(max(1, n) for n in data.shape),
        overwrite=True,
        attributes=attributes,
    )[...] = data


def plain(value: Tensor) -> Tensor:
    """A tensor as a folder holds it: on the CPU, and of a dtype that numpy knows."""
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu()


def constants(operator: Operator, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The real tensors that an operator, and those that it is made of, were built from."""
    for name, value in own_constants(operator).items():
        if isinstance(value, Tensor) and not value.is_complex():
            yield prefix + name, value
    for index, child in enumerate(operator._children):
        yield from constants(child, f"{prefix}{index}_")


def axes(shape: Sequence[int], prefix: str = "") -> list[str]:
    """Names of the axes of an image, or of whatever else it is."""
    names = ("channel", "row", "column") if len(shape) == 3 else [f"axis{axis}" for axis in range(len(shape))]
    return [prefix + name for name in names]


def consolidate(folder: Path) -> None:
    """Put the metadata of all arrays into the root's too, which is what readers go by: it changes in one piece."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Consolidated metadata|Object at (\.lock|\.run|truth)")
        zarr.consolidate_metadata(str(folder))
