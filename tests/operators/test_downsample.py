"""Downsampling against Pillow and against its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.operators import Blur, Downsample, Spectral, checks


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pillow(plane: torch.Tensor, factor: int, method: Image.Resampling) -> np.ndarray:
    image = Image.fromarray(plane.numpy().astype(np.float32))
    assert image.mode == "F"
    return np.asarray(image.resize((plane.shape[1] // factor, plane.shape[0] // factor), method))


@pytest.mark.parametrize("kind", ["box", "bicubic"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 4), (16, 11)])
def test_equals_pillow_on_floats_borders_included(kind: str, factor: int, size: tuple[int, int]) -> None:
    image = random(2, 3, size[0] * factor, size[1] * factor)
    got = Downsample(factor, image.shape[1:], kind)(image).numpy()
    method = Image.Resampling.BOX if kind == "box" else Image.Resampling.BICUBIC
    for member in range(2):
        for channel in range(3):
            expected = pillow(image[member, channel], factor, method)
            np.testing.assert_allclose(got[member, channel], expected, atol=3e-7)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_psf_blurs_circularly_and_keeps_every_factor_th_pixel_from_the_first(factor: int) -> None:
    psf, image = random(4, 3), random(2, 2, 6 * factor, 5 * factor, seed=1)
    shape = tuple(image.shape[1:])
    got = Downsample(factor, shape, psf)(image)
    torch.testing.assert_close(got, Blur(psf, shape)(image)[..., ::factor, ::factor])


def test_one_psf_per_member() -> None:
    psfs, image = random(2, 3, 3), random(2, 1, 8, 8, seed=1)
    operator = Downsample(2, (1, 8, 8), psfs)
    assert operator.batch == 2
    for i in range(2):
        alone = Downsample(2, (1, 8, 8), psfs[i])
        torch.testing.assert_close(operator(image)[i : i + 1], alone(image[i : i + 1]))
        torch.testing.assert_close(operator.take([i]).singular[0], alone.singular)


@pytest.mark.parametrize("kind", ["box", "bicubic", torch.ones(3, 3)])
def test_a_constant_image_keeps_its_value_and_the_null_space_is_seen(kind: object) -> None:
    kind = kind / kind.sum() if isinstance(kind, torch.Tensor) else kind
    operator = Downsample(4, (1, 16, 16), kind)
    assert isinstance(operator, Spectral)
    constant = torch.full((1, 1, 16, 16), 0.7, dtype=torch.float64)
    torch.testing.assert_close(operator(constant), torch.full((1, 1, 4, 4), 0.7, dtype=torch.float64))
    image = random(1, 1, 16, 16)
    rest = image - operator.v(operator.vt(image))
    assert float(rest.norm()) > 1.0
    torch.testing.assert_close(operator(rest), torch.zeros(1, 1, 4, 4, dtype=torch.float64), atol=1e-13, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="crop it to 8 x 8 pixels"):
        Downsample(4, (3, 9, 10))
    for factor in (0, -2, 2.0, True):
        with pytest.raises(ValueError, match="expected an integer of at least 1"):
            Downsample(factor, (3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind='lanczos', expected box, bicubic or a PSF"):
        Downsample(2, (3, 8, 8), "lanczos")
    with pytest.raises(ValueError, match="larger than the image"):
        Downsample(2, (3, 8, 8), torch.ones(9, 9))


def test_coordinates_stay_orthonormal_where_a_psf_removes_every_alias() -> None:
    operator = Downsample(2, (1, 8, 8), torch.ones(4, 4) / 16)
    assert int((operator.singular == 0).sum()) == 7
    checks.svd_test(operator, tol=1e-12)
    measurement = random(1, 1, 4, 4)
    z = torch.fft.fft2(measurement, norm="ortho")  # coordinates of a real image, zeros of s included
    torch.testing.assert_close(operator.vt(operator.v(z)), z)


def test_a_factor_of_numpy_is_a_factor() -> None:
    operator = Downsample(np.int64(2), (1, 4, 4))
    assert operator.out_shape == (1, 2, 2)
    assert type(operator.factor) is int
