"""Blurs against SciPy's convolutions, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch

from invdiff.operators import Blur, Spectral, checks

SCIPY_MODES = {"circular": "wrap", "reflect": "mirror", "replicate": "nearest", "zero": "constant"}
SIZES = [(1, 1), (1, 4), (2, 2), (3, 3), (4, 3), (5, 8), (8, 9)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("boundary", SCIPY_MODES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_scipy_convolution(boundary: str, size: tuple[int, int]) -> None:
    image, kernel = random(2, 3, 8, 9), random(*size, seed=1)
    got = Blur(kernel, (3, 8, 9), boundary=boundary)(image).numpy()
    for member in range(2):
        for channel in range(3):
            expected = scipy.ndimage.convolve(
                image[member, channel].numpy(), kernel.numpy(), mode=SCIPY_MODES[boundary]
            )
            np.testing.assert_allclose(got[member, channel], expected, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_valid_equals_scipy_and_is_the_inside_of_the_others(size: tuple[int, int]) -> None:
    image, kernel = random(1, 1, 8, 9), random(*size, seed=1)
    got = Blur(kernel, (1, 8, 9), boundary="valid")(image)[0, 0]
    expected = scipy.signal.convolve2d(image[0, 0].numpy(), kernel.numpy(), mode="valid")
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    same = Blur(kernel, (1, 8, 9), boundary="zero")(image)[0, 0]
    top, left = size[0] - 1 - size[0] // 2, size[1] - 1 - size[1] // 2
    torch.testing.assert_close(same[top : top + got.shape[0], left : left + got.shape[1]], got)


@pytest.mark.parametrize("boundary", SCIPY_MODES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 5)])
def test_a_point_becomes_the_psf_with_its_centre_at_half_the_size(boundary: str, size: tuple[int, int]) -> None:
    kernel = random(*size)
    point = torch.zeros(1, 1, 12, 13, dtype=torch.float64)
    point[0, 0, 6, 7] = 1.0
    top, left = 6 - size[0] // 2, 7 - size[1] // 2
    image = Blur(kernel, (1, 12, 13), boundary=boundary)(point)[0, 0]
    torch.testing.assert_close(image[top : top + size[0], left : left + size[1]], kernel)
    assert float(image.sum()) == pytest.approx(float(kernel.sum()))


def test_only_the_circular_blur_is_spectral() -> None:
    kernel = random(3, 3)
    assert isinstance(Blur(kernel, (1, 8, 8)), Spectral)
    for boundary in ("reflect", "replicate", "zero", "valid"):
        assert not isinstance(Blur(kernel, (1, 8, 8), boundary=boundary), Spectral)


@pytest.mark.parametrize("boundary", [*SCIPY_MODES, "valid"])
def test_one_psf_per_member(boundary: str) -> None:
    kernels, image = random(3, 4, 3), random(3, 2, 8, 9, seed=1)
    together = Blur(kernels, (2, 8, 9), boundary=boundary)
    assert together.batch == 3
    for i in range(3):
        alone = Blur(kernels[i], (2, 8, 9), boundary=boundary)(image[i : i + 1])
        torch.testing.assert_close(together(image)[i : i + 1], alone)
    assert Blur(kernels[:1], (2, 8, 9), boundary=boundary).batch is None
    torch.testing.assert_close(together.take([2, 2]).kernel, kernels[[2, 2]])  # type: ignore[attr-defined]


def test_frequencies_that_the_psf_removes_have_singular_value_zero_and_phase_one() -> None:
    operator = Blur(torch.tensor([[0.5, 0.5]]), (1, 1, 6))
    assert int((operator.singular == 0).sum()) == 1
    ones = torch.ones(1, 1, 1, 4, dtype=torch.complex128)
    nyquist = operator.singular == 0
    phase = torch.fft.fft2(operator.u(torch.where(nyquist, ones, 0)), norm="ortho")
    torch.testing.assert_close(phase[..., 3], torch.ones_like(phase[..., 3]))
    checks.svd_test(operator, tol=1e-12)


@pytest.mark.parametrize("boundary", [*SCIPY_MODES, "valid"])
def test_float32_keeps_its_precision_on_bright_images(boundary: str) -> None:
    image, kernel = 100 + random(1, 3, 61, 67), random(15, 12, seed=1)
    kernel = kernel / kernel.sum()
    operator = Blur(kernel, (3, 61, 67), boundary=boundary)
    error = (operator(image.float()).double() - operator(image)).abs().max()
    assert float(error) < 1e-6 * 100


@pytest.mark.parametrize("boundary", [*SCIPY_MODES, "valid"])
@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        (torch.ones(9, 3), "PSF of 9 x 3 pixels is larger than the image of 8 x 9"),
        (torch.zeros(3, 3), "sums to 0, expected a positive sum"),
        (torch.tensor([[1.0, -2.0]]), "sums to -1"),
        (torch.stack([torch.ones(2, 2), -torch.ones(2, 2)]), "sums to -4"),
        (torch.tensor([[1.0, float("nan")]]), "not finite"),
        (torch.tensor([[1.0, float("inf")]]), "not finite"),
        (torch.ones(3), "expected \\(height, width\\)"),
        (torch.ones(0, 3), "expected \\(height, width\\)"),
        (torch.ones(2, 2) * 1j, "complex"),
    ],
)
def test_bad_psfs_are_refused(boundary: str, kernel: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Blur(kernel, (3, 8, 9), boundary=boundary)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"boundary='wrap', expected one of circular, reflect"):
        Blur(torch.ones(1, 1), (1, 8, 8), boundary="wrap")
    with pytest.raises(ValueError, match=r"expected \(C, H, W\)"):
        Blur(torch.ones(1, 1), (8, 8))
    with pytest.raises(TypeError, match="expected real numbers"):
        Blur([["a"]], (1, 8, 8))


def test_numpy_psfs_with_any_layout_are_taken_and_not_kept() -> None:
    kernel = np.arange(6.0).reshape(2, 3)[::-1, ::-1]
    image = random(1, 1, 5, 5)
    operator = Blur(kernel, (1, 5, 5))
    before = operator(image)
    torch.testing.assert_close(before, Blur(torch.tensor(kernel.copy()), (1, 5, 5))(image))
    kernel[:] = 0.0
    torch.testing.assert_close(operator(image), before)
    big_endian = np.ones((2, 2), dtype=">f4")
    torch.testing.assert_close(Blur(big_endian, (1, 5, 5))(image), Blur(torch.ones(2, 2), (1, 5, 5))(image))


def test_what_a_wide_psf_removes_is_exactly_zero_and_the_same_for_both_signs_of_a_frequency() -> None:
    line = torch.exp(-((torch.arange(61, dtype=torch.float64) - 30) ** 2) / 32)
    operator = Blur(line[:, None] * line, (1, 64, 63))
    s = operator.singular[0]
    assert float((s == 0).double().mean()) > 0.5
    assert float(s[s > 0].min()) > 1e-15 * float(s.max())
    # Columns 0 and W / 2 hold a frequency and its mirror image; of the others half the spectrum is kept.
    assert torch.equal(s[:, 0], s[:, 0].flip(0).roll(1, 0))
    uneven = Blur(random(7, 5), (1, 30, 26)).singular[0][:, [0, -1]]
    assert torch.equal(uneven, uneven.flip(0).roll(1, 0))
    checks.svd_test(operator, tol=1e-12)
