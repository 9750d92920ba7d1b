"""Metrics against scikit-image and against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data, restoration
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invdiff.metrics import Chi2, chi2, estimate_sigma, measured, psnr, spread_ratio, ssim
from invdiff.operators import Blur, Identity, Mask


def _pair(channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    clean = data.astronaut()[60:125, 180:241] / 255.0
    clean = clean if channels == 3 else clean[..., :1]
    return clean, clean + 0.08 * np.random.default_rng(seed).standard_normal(clean.shape)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, 0)[None].copy())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_psnr_and_ssim_equal_scikit_image(channels: int, scale: float) -> None:
    pairs = [_pair(channels, seed) for seed in (0, 1)]
    clean, noisy = (torch.cat([_tensor(pair[i] * scale) for pair in pairs]).float() for i in (0, 1))
    for member, (a, b) in enumerate(pairs):
        a, b = a * scale, b * scale
        expected = peak_signal_noise_ratio(a, b, data_range=scale)
        assert psnr(noisy, clean, data_range=scale)[member].item() == pytest.approx(expected, abs=1e-4)
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        for window, options in (("gaussian", settings), ("uniform", {})):
            expected = structural_similarity(a, b, data_range=scale, channel_axis=-1, **options)
            found = ssim(noisy, clean, data_range=scale, window=window)[member].item()  # type: ignore[arg-type]
            assert found == pytest.approx(expected, abs=1e-4)


def test_the_default_window_is_the_papers() -> None:
    clean, noisy = (_tensor(array) for array in _pair(3))
    assert torch.equal(ssim(noisy, clean), ssim(noisy, clean, window="gaussian"))
    assert not torch.allclose(ssim(noisy, clean), ssim(noisy, clean, window="uniform"))
    assert ssim(clean, clean).item() == pytest.approx(1)


def test_psnr_and_ssim_refuse() -> None:
    with pytest.raises(ValueError, match="they must agree"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))
    with pytest.raises(ValueError, match="window is 'box'"):
        ssim(torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20), window="box")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(64, 64, 3), (37, 51, 1), (9, 7, 1)])
def test_noise_estimate_equals_scikit_image(shape: tuple[int, ...]) -> None:
    pytest.importorskip("pywt", reason="scikit-image's estimate needs PyWavelets")
    image = np.random.default_rng(3).normal(0.5, 0.1, shape)
    expected = restoration.estimate_sigma(image, channel_axis=-1, average_sigmas=True)
    assert estimate_sigma(_tensor(image)) == pytest.approx(expected, rel=1e-9)


def test_noise_estimate_is_near_the_truth() -> None:
    smooth = np.outer(np.linspace(0, 1, 128), np.linspace(0.2, 0.8, 128))[..., None]
    for sigma in (0.01, 0.05, 0.2):
        noisy = smooth + sigma * np.random.default_rng(0).standard_normal(smooth.shape)
        assert estimate_sigma(_tensor(noisy)) == pytest.approx(sigma, rel=0.05)
    with pytest.raises(ValueError, match="constant"):
        estimate_sigma(torch.full((1, 1, 8, 8), 0.5))
    with pytest.raises(ValueError, match="2 x 8"):
        estimate_sigma(torch.ones(1, 1, 2, 8))


def test_chi2_is_one_for_the_truth_and_counts_measured_values_only() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, sigma = (3, 40, 40), 0.05
    mask = torch.zeros(1, 40, 40)
    mask[:, :10] = 1
    operator = Mask(mask, shape)
    truth = torch.rand(shape, generator=generator)
    y = operator(truth[None])[0] + sigma * torch.randn(shape, generator=generator)
    y = y * mask  # nothing where nothing was measured: counted, it would read 0.25
    found = chi2(truth[None].expand(4, *shape), y, operator, sigma)
    assert found.values == 3 * 10 * 40
    assert found.value == pytest.approx(1, abs=3 * math.sqrt(2 / found.values))
    assert found.rms == pytest.approx(sigma, rel=0.1)
    assert "consistent" in found.verdict
    assert measured(operator).sum() == found.values


def test_chi2_verdicts() -> None:
    operator, y = Identity((1, 50, 50)), torch.zeros(1, 50, 50)
    noise = torch.randn(1, 50, 50, generator=torch.Generator().manual_seed(0))
    assert "miss the measurement" in chi2(0.2 * noise[None], y, operator, 0.1).verdict
    assert "more closely than its noise" in chi2(0.05 * noise[None], y, operator, 0.1).verdict
    assert chi2(0.2 * noise[None], y, operator, 0.1, point=True).verdict == ""
    exact = chi2(noise[None], y, operator, 0.0)
    assert exact.value is None
    assert exact.verdict == ""
    assert exact.rms == pytest.approx(1, rel=0.05)
    # few values: the band widens to three standard deviations of chi^2
    assert "consistent" in Chi2(1.5, 20, 0.1, False).verdict
    assert "miss" in Chi2(1.5, 2000, 0.1, False).verdict
    with pytest.raises(ValueError, match="what the operator measures"):
        chi2(noise[None], torch.zeros(1, 50, 49), operator, 0.1)


def test_a_miss_through_a_blur_that_wraps_round_names_the_boundary() -> None:
    image = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    psf = torch.full((3, 3), 1 / 9)
    for operator, named in ((Blur(psf, (1, 20, 20)), True), (Blur(psf, (1, 20, 20), "reflect"), False)):
        missed = chi2(image[None], operator(image[None])[0] + 0.2, operator, 0.1)
        assert ("a photograph does not: its boundary is 'valid'" in missed.verdict) is named


@pytest.mark.parametrize("draws", [2, 5, 40])
def test_spread_ratio_is_one_for_exact_draws(draws: int) -> None:
    generator = torch.Generator().manual_seed(draws)
    centre = torch.rand(1, 100, 100, generator=generator)
    width = 0.1 + torch.rand(1, 100, 100, generator=generator)
    truth = centre + width * torch.randn(centre.shape, generator=generator)
    samples = centre + width * torch.randn(draws, *centre.shape, generator=generator)
    assert spread_ratio(samples, truth) == pytest.approx(1, abs=0.04)
    assert spread_ratio(centre + 0.5 * (samples - centre), truth) < 0.8
    with pytest.raises(ValueError, match="at least 2 draws"):
        spread_ratio(samples[:1], truth)
