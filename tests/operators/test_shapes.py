"""The shapes that operators take: positive integers, Python's or numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invdiff.operators import Identity


@pytest.mark.parametrize(
    "shape",
    [
        (np.int64(1), np.int32(4), 5),
        [1, 4, 5],
        np.array([1, 4, 5]),
        torch.Size([1, 4, 5]),
    ],
    ids=["integers", "list", "array", "size"],
)
def test_whole_numbers_of_any_kind(shape) -> None:
    operator = Identity(shape)
    assert operator.in_shape == operator.out_shape == (1, 4, 5)
    assert all(type(size) is int for size in operator.in_shape)


@pytest.mark.parametrize(
    "shape",
    [(True, 4, 5), (np.bool_(True), 4, 5), (1, 4.0, 5), (1, np.float64(4), 5), (0, 4, 5), (1, -4, 5), "abc", 7, None],
)
def test_everything_else_is_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"Identity got the shape .* expected a tuple of positive integers"):
        Identity(shape)
