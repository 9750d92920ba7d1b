"""Masks from files, and what an alpha channel that hides nothing does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.arrays import from_array
from invdiff.options import build_operator


def test_mask_files_are_black_and_white_or_floats(tmp_path) -> None:
    shape = (1, 4, 4)
    values = np.zeros((4, 4), dtype=np.uint8)
    values[:2] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    np.save(tmp_path / "bool.npy", values > 0)
    for name in ("mask.png", "bool.npy"):
        mask = build_operator("mask", shape, mask=str(tmp_path / name))
        assert torch.equal(mask(torch.ones(1, *shape)), torch.from_numpy(values / 255.0).float()[None, None])
    np.save(tmp_path / "gains.npy", values / 510.0)
    gains = build_operator("mask", shape, mask=str(tmp_path / "gains.npy"))
    assert float(gains(torch.ones(1, *shape)).max()) == 0.5
    values[3] = 128
    Image.fromarray(values).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png has 4 grey values: expected white \(seen\) and black"):
        build_operator("mask", shape, mask=str(tmp_path / "grey.png"))


def test_an_opaque_alpha_channel_is_dropped() -> None:
    colour = np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    opaque = np.dstack([colour, np.full((5, 5), 255, np.uint8)])
    assert torch.equal(from_array(opaque)[0], from_array(colour)[0])


def test_an_operator_has_the_name_of_experiments_too():
    for name, other in (("gray", "grayscale"), ("denoise", "identity")):
        assert type(build_operator(name, (1, 8, 8))) is type(build_operator(other, (1, 8, 8)))
