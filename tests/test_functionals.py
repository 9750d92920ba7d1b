"""Functionals of images by their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from invdiff.functionals import PatchMeans, WaveletBand, WaveletEnergy, default_functionals, distances


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_patch_means_are_those_of_the_patches() -> None:
    x = images(2, 3, 9, 14)
    found = PatchMeans(4)(x)
    assert found.shape == (2, 3, 2, 3)
    assert found[1, 2, 1, 2].item() == pytest.approx(np.mean(x[1, 2, 4:8, 8:12].numpy()))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.sampled_from([8, 16, 24]), st.sampled_from([8, 32]))
def test_bands_and_what_is_left_hold_all_of_an_image(channels: int, height: int, width: int) -> None:
    x = images(2, channels, height, width)
    energy = sum(WaveletBand(level)(x).square().flatten(1).sum(1) for level in (1, 2, 3))
    rest = (8 * avg_pool2d(x, 8)).square().flatten(1).sum(1)
    torch.testing.assert_close(energy + rest, x.square().flatten(1).sum(1))


def test_bands_name_the_direction_of_the_detail() -> None:
    step = torch.zeros(1, 1, 4, 4)
    step[..., 1::2] = 1  # changes from column to column only
    rows, columns, diagonal = WaveletBand(1)(step)[0]
    assert rows.abs().max() == diagonal.abs().max() == 0
    assert columns.abs().min() == 1
    assert WaveletBand(2)(step).abs().max() == 0


def test_an_uneven_size_loses_what_is_left_over() -> None:
    x = images(1, 2, 11, 9)
    for level, side in ((1, (5, 4)), (2, (2, 2)), (3, (1, 1))):
        band = WaveletBand(level)(x)
        assert band.shape == (1, 6, *side)
        size = 2**level
        torch.testing.assert_close(band, WaveletBand(level)(x[..., : side[0] * size, : side[1] * size]))


def test_energy_is_the_root_mean_square_of_a_channels_details() -> None:
    x = images(2, 3, 16, 16)
    band = WaveletBand(2)(x)
    # Directions come first: channel c of direction d stands at 3 d + c.
    expected = [[band[b, c::3].square().mean().sqrt() for c in range(3)] for b in range(2)]
    torch.testing.assert_close(WaveletEnergy(2)(x), torch.tensor(expected, dtype=torch.float64))


def test_distances_are_euclidean() -> None:
    x, point = images(3, 2, 4, 4), images(2, 4, 4).flip(0)
    expected = np.linalg.norm((x - point).reshape(3, -1).numpy(), axis=1)
    np.testing.assert_allclose(distances(x.float(), point)[:, 0], expected, rtol=1e-6)


def test_defaults_fit_the_shape() -> None:
    assert list(default_functionals((1, 8, 20))) == ["means of 2x2 patches", "wavelet energy 1", "wavelet energy 2"]
    assert default_functionals((1, 1, 5)) == {}
    assert default_functionals((40,)) == {}
    for shape in ((3, 16, 16), (1, 2, 2), (1, 33, 18)):
        for functional in default_functionals(shape).values():
            assert torch.isfinite(functional(images(2, *shape))).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Patch means needs images .* of at least 8 x 8, got"):
        PatchMeans()(images(1, 1, 7, 9))
    with pytest.raises(ValueError, match=r"Level 3 of the wavelet transform needs images .* of at least 8 x 8"):
        WaveletEnergy(3)(images(1, 1, 7, 9))
    with pytest.raises(ValueError, match=r"got \(5, 9\)"):
        PatchMeans(2)(images(5, 9))
