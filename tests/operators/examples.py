"""Random examples of every operator, for the contract that all of them are held to."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import settings
from hypothesis import strategies as st

from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    Matrix,
    Operator,
    from_function,
    from_scipy,
    stack,
)

F64 = torch.float64
# The same examples on every run; INVDIFF_EXAMPLES=200 explores more of them.
EXAMPLES = int(os.environ.get("INVDIFF_EXAMPLES", "6"))
contract = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="INVDIFF_EXAMPLES" not in os.environ, database=None
)


class Choices:
    """Random parameters of one operator, from hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(self.integer(0, 10**6))

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def members(self) -> int:
        """Number of members: 0 stands for one map for all."""
        return self.data.draw(st.sampled_from([0, 0, 1, 2, 3]))

    def rand(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=F64)

    def shape(self, channels: int | None = None, factor: int = 1) -> tuple[int, int, int]:
        low, high = 1, max(9 // factor, 1)
        c = self.integer(1, 3) if channels is None else channels
        return c, factor * self.integer(low, high), factor * self.integer(low, high)

    def psf(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """A PSF of any size that fits, for all or for each member, with negative values now and then."""
        m = self.members()
        kh, kw = self.integer(1, shape[1]), self.integer(1, shape[2])
        values = self.rand(*([m] if m else []), kh, kw) - 0.1 * self.integer(0, 1)
        values[..., 0, 0] += 1.0
        return values


def blur(boundary: str) -> Callable[[Choices], LinearOperator]:
    def build(c: Choices) -> LinearOperator:
        shape = c.shape()
        return Blur(c.psf(shape), shape, boundary=boundary)

    return build


def mask(c: Choices) -> LinearOperator:
    shape, m = c.shape(), c.members()
    values = c.rand(*([m] if m else []), *shape)
    return Mask(torch.where(values < 0.4, 0.0, values), shape)


def downsample(kind: str) -> Callable[[Choices], LinearOperator]:
    def build(c: Choices) -> LinearOperator:
        factor = c.integer(1, 4)
        shape = c.shape(factor=factor)
        return Downsample(factor, shape, c.psf(shape) if kind == "psf" else kind)

    return build


def gray(c: Choices) -> LinearOperator:
    shape = c.shape()
    return Grayscale(shape, (c.rand(shape[0]) - 0.3).tolist())


def gray_of(build: Callable[[Choices], LinearOperator]) -> Callable[[Choices], LinearOperator]:
    def product(c: Choices) -> LinearOperator:
        spatial = build(c)
        return Grayscale(spatial.out_shape, c.rand(spatial.out_shape[0]) + 0.1) @ spatial

    return product


def mask_equal_on_channels(c: Choices) -> LinearOperator:
    shape = c.shape()
    return Mask(c.rand(*shape[1:]).round(), shape)


def blur_of_gray(c: Choices) -> LinearOperator:
    shape = c.shape()
    return blur_on(c, (1, *shape[1:])) @ Grayscale(shape, c.rand(shape[0]) + 0.1)


def blur_on(c: Choices, shape: tuple[int, int, int]) -> LinearOperator:
    return Blur(one_psf(c, shape), shape)


def one_psf(c: Choices, shape: tuple[int, int, int]) -> torch.Tensor:
    return c.rand(c.integer(1, shape[1]), c.integer(1, shape[2])) + 0.01


def matrix(c: Choices) -> LinearOperator:
    m, n_out, n_in = c.members(), c.integer(1, 6), c.integer(1, 6)
    values = c.rand(*([m] if m else []), n_out, n_in) - 0.5
    if c.integer(0, 1):
        values[..., -1, :] = values[..., 0, :]  # a rank that may be deficient
    return Matrix(values)


def double_blur(c: Choices) -> LinearOperator:
    shape = c.shape()
    return blur_on(c, shape) @ blur_on(c, shape)


def downsampled_blur(c: Choices) -> LinearOperator:
    shape = c.shape(factor=2)
    return Downsample(2, shape, one_psf(c, shape)) @ blur_on(c, shape)


def scaled(c: Choices) -> LinearOperator:
    return (c.integer(-3, 3) / 2) * mask(c)


def total(c: Choices) -> LinearOperator:
    shape = c.shape()
    return blur_on(c, shape) + Mask(c.rand(*shape), shape)


def product(c: Choices) -> LinearOperator:
    shape = c.shape()
    return Blur(one_psf(c, shape), shape, "zero") @ Mask(c.rand(*shape), shape)


def stacked(c: Choices) -> LinearOperator:
    shape = c.shape(factor=2)
    other = Downsample(2, shape) if c.integer(0, 1) else Grayscale(shape, [1.0] * shape[0])
    return stack(blur_on(c, shape), other, 3 * Identity(shape))


def transposed(c: Choices) -> LinearOperator:
    return (downsample("psf")(c) if c.integer(0, 1) else blur("reflect")(c)).T


def function(c: Choices) -> LinearOperator:
    n = c.integer(1, 7)
    return from_function(lambda x: x.cumsum(-1)[..., ::2], (2, n))


def sparse(c: Choices) -> LinearOperator:
    rows, columns = c.integer(1, 6), c.integer(1, 3)
    return from_scipy(scipy.sparse.csr_matrix(c.rand(rows, 2 * columns).numpy().round(1)), in_shape=(2, columns))


SPECTRAL: dict[str, Callable[[Choices], LinearOperator]] = {
    "identity": lambda c: Identity(c.shape()),
    "mask": mask,
    "blur": blur("circular"),
    "box": downsample("box"),
    "bicubic": downsample("bicubic"),
    "psf": downsample("psf"),
    "gray": gray,
    "matrix": matrix,
    "gray of blur": gray_of(blur("circular")),
    "gray of box": gray_of(downsample("box")),
    "gray of bicubic": gray_of(downsample("bicubic")),
    "gray of psf": gray_of(downsample("psf")),
    "gray of mask": gray_of(mask_equal_on_channels),
    "blur of gray": blur_of_gray,
    "blur of blur": double_blur,
    "psf of blur": downsampled_blur,
    "scaled": scaled,
    "transposed spectral": lambda c: gray_of(downsample("psf"))(c).T,
}
OTHERS: dict[str, Callable[[Choices], LinearOperator]] = {
    "reflect": blur("reflect"),
    "replicate": blur("replicate"),
    "zero": blur("zero"),
    "valid": blur("valid"),
    "sum": total,
    "product": product,
    "stack": stacked,
    "transposed": transposed,
    "function": function,
    "sparse": sparse,
}
EVERY = {**SPECTRAL, **OTHERS}
every = pytest.mark.parametrize("name", EVERY)


def dense(operator: Operator, member: int = 0) -> np.ndarray:
    """The matrix of one member, column by column from the forward map."""
    one = operator.take([member])
    n = int(np.prod(operator.in_shape))
    return one(torch.eye(n, dtype=F64).reshape(n, *operator.in_shape)).reshape(n, -1).T.numpy()


def inputs(operator: Operator, c: Choices, dtype: torch.dtype = F64) -> tuple[torch.Tensor, torch.Tensor]:
    members = operator.batch or c.integer(1, 3)
    x = c.rand(members, *operator.in_shape).to(dtype)
    return x, c.rand(members, *operator.out_shape).to(dtype)
