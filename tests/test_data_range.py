"""A camera's offset: data_range as the values that stand for black and white."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from invdiff import restore
from invdiff.arrays import from_array


def test_the_ends_of_the_range_are_zero_and_one_and_come_back() -> None:
    array = np.array([[100, 2100, 4100, 50]], dtype=np.uint16)
    tensor, layout = from_array(array, data_range=(100, 4100))
    assert tensor.flatten().tolist() == pytest.approx([0.0, 0.5, 1.0, -0.0125])
    np.testing.assert_array_equal(layout.to_array(tensor[0]), array)
    assert layout.to_array(tensor[0] + 1).max() == 4100, "integers end at white"
    assert layout.to_array(tensor[0], dtype=np.float32, difference=True).tolist()[0] == pytest.approx(
        [0.0, 2000.0, 4000.0, -50.0]
    )


def test_a_restoration_keeps_the_offset_and_its_spread_has_none() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(2000, 200, (16, 16)).clip(0, 4000).astype(np.uint16)
    settings: dict[str, Any] = {"sigma": 0.05, "prior": "gaussian", "solver": "ddrm", "draws": 3, "progress": False}
    first = restore(plain, **settings, data_range=4000)
    second = restore(plain + np.uint16(100), **settings, data_range=(100, 4100))
    np.testing.assert_array_equal(second.restored, first.restored + 100)
    np.testing.assert_allclose(second.std, first.std, rtol=1e-5)
    np.testing.assert_array_equal(second.draws, first.draws + 100)


@pytest.mark.parametrize(
    ("data_range", "error", "sentence"),
    [
        ((100, 100), ValueError, r"data_range is \(100, 100\): expected a finite number above 100"),
        ((0, float("inf")), ValueError, "expected a finite number above 0"),
        ((1, 2, 3), TypeError, "or a pair, the values that mean 0 and 1"),
        (("0", 1), TypeError, "or a pair, the values that mean 0 and 1"),
    ],
)
def test_ends_that_are_none_are_refused(data_range: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        from_array(np.zeros((4, 4), np.uint16), data_range=data_range)
