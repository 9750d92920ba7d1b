"""Each smoother against a second implementation, and the fitted curves against the claim that they are the best."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.priors import GaussianBlur, Median, Wavelet, load
from invdiff.priors.nlm import non_local_means
from invdiff.priors.smooth import bilateral
from invdiff.priors.smoother import Smoother, box_sum, fitted_strength, mirror, opponent
from invdiff.priors.tv import tv_denoise, tv_objective
from invdiff.priors.wavelet import daubechies, threshold

FAMILIES = [
    "gaussian",
    "median",
    "bilateral",
    "wavelet_soft",
    "wavelet_garrote",
    "wavelet_sharp",
    "wavelet_hard",
    "tv",
    "nlm",
]


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """A photograph (H, W, 3), float64, with noise of 0.1."""
    from skimage import data

    image = data.astronaut()[100:148, 180:234] / 255.0
    return image + 0.1 * np.random.default_rng(0).standard_normal(image.shape)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None]


def array(x: Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy()


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 13])
def test_box_sum(width: int) -> None:
    x = torch.rand(2, 1, 17, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if width > 14:
        pytest.fail("the window must fit")
    expected = torch.nn.functional.avg_pool2d(x, width, stride=1) * width * width
    torch.testing.assert_close(box_sum(x, width), expected)


def test_mirror_reflects_by_any_amount() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (7, 7), (8, 8)), mode="symmetric")
    assert np.array_equal(mirror(x, 7, 8).numpy(), expected)


def test_opponent_is_orthonormal_and_gathers_gray_in_the_first() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(opponent(opponent(x), inverse=True), x)
    torch.testing.assert_close(opponent(x).square().sum(), x.square().sum())
    assert opponent(torch.ones(1, 3, 1, 1)).flatten().tolist() == pytest.approx([math.sqrt(3), 0, 0], abs=1e-7)


@pytest.mark.parametrize("width", [1.0, 2.5])
def test_gaussian_equals_scipy(noisy: np.ndarray, width: float) -> None:
    from scipy.ndimage import gaussian_filter

    expected = gaussian_filter(noisy, (width, width, 0), mode="reflect", truncate=9)
    result = array(GaussianBlur().smooth(tensor(noisy), one(width), one(0.1)))
    # The sampled Gaussian and the Gaussian of the frequencies differ by aliasing alone, which dies off fast with width.
    assert np.abs(result - expected).max() < (1e-2 if width == 1.0 else 1e-7)


@pytest.mark.parametrize("width", [3, 5, 7])
def test_small_medians_equal_scipy(noisy: np.ndarray, width: int) -> None:
    from scipy.ndimage import median_filter

    expected = median_filter(noisy, size=(width, width, 1), mode="reflect")
    assert np.array_equal(array(Median.window_median(tensor(noisy), width)), expected)


@pytest.mark.parametrize("width", [9, 15])
def test_large_medians_are_near_scipy(noisy: np.ndarray, width: int) -> None:
    from scipy.ndimage import median_filter

    difference = np.abs(array(Median.window_median(tensor(noisy), width)) - median_filter(noisy, (width, width, 1)))
    assert difference.mean() < 2e-3
    assert difference.max() < np.ptp(noisy) / 63  # the widest step between levels


def test_median_between_widths_is_the_mixture(noisy: np.ndarray) -> None:
    x = tensor(noisy)
    mixed = Median().smooth(x, one(2.5), one(0.1))
    expected = 0.75 * Median.window_median(x, 3) + 0.25 * Median.window_median(x, 5)
    torch.testing.assert_close(mixed, expected)


def test_bilateral_by_its_definition(noisy: np.ndarray) -> None:
    radius, spatial, tonal = 4, 1.7, 0.25
    padded = np.pad(noisy, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    total, weights = np.zeros_like(noisy), np.zeros((*noisy.shape[:2], 1))
    for i in range(2 * radius + 1):
        for j in range(2 * radius + 1):
            there = padded[i : i + noisy.shape[0], j : j + noisy.shape[1]]
            near = ((i - radius) ** 2 + (j - radius) ** 2) / (2 * spatial**2)
            weight = np.exp(-near - ((noisy - there) ** 2).sum(axis=-1, keepdims=True) / (2 * tonal**2))
            total, weights = total + weight * there, weights + weight
    assert np.abs(array(bilateral(tensor(noisy), spatial, tonal, radius)) - total / weights).max() < 1e-12


@pytest.mark.parametrize("channels", [1, 3])
def test_bilateral_equals_scikit_image(noisy: np.ndarray, channels: int) -> None:
    from skimage.restoration import denoise_bilateral

    # Flat in space: scikit-image 0.26 reads its table of spatial weights askew for odd windows. It divides the distance
    # between colours by the number of channels, so its sigma_color is ours divided by that number.
    image = np.clip(noisy, 0, 1)[..., :channels].squeeze()
    expected = denoise_bilateral(
        image,
        win_size=9,
        sigma_color=0.2 / channels,
        sigma_spatial=1e6,
        bins=100_000,
        mode="symmetric",
        channel_axis=-1 if channels == 3 else None,
    )
    assert np.abs(array(bilateral(tensor(image), 1e6, 0.2, 4)).squeeze() - expected).max() < 1e-4


@pytest.mark.parametrize("lam", [0.05, 0.15])
def test_tv_is_as_low_as_scikit_image(noisy: np.ndarray, lam: float) -> None:
    from skimage.restoration import denoise_tv_chambolle

    gray = noisy[..., 0]
    x = tensor(gray)
    default = tv_objective(tensor(denoise_tv_chambolle(gray, weight=lam)), x, lam)
    converged = tensor(denoise_tv_chambolle(gray, weight=lam, eps=1e-9, max_num_iter=3000))
    ours = tv_objective(tv_denoise(x, one(lam), 100), x, lam)
    assert float(ours) <= float(default)
    assert float(ours) <= 1.002 * float(tv_objective(converged, x, lam))
    long = tv_denoise(x, one(lam), 1500)
    assert float((long - converged).abs().max()) < 0.01
    torch.testing.assert_close(tv_objective(long, x, lam), tv_objective(converged, x, lam), rtol=1e-4, atol=0)


def test_tv_keeps_the_mean_and_its_subgradient() -> None:
    x = torch.rand(1, 3, 20, 23, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = tv_denoise(x, one(1e3), 3000)
    expected = x.mean(dim=(-2, -1), keepdim=True).expand_as(x)
    torch.testing.assert_close(flat, expected, rtol=0, atol=2e-3)  # an infinite weight leaves the mean of each channel
    torch.testing.assert_close(flat.mean(dim=(-2, -1)), x.mean(dim=(-2, -1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_nlm_by_its_definition(noisy: np.ndarray, channels: int) -> None:
    image = noisy[:18, :21, :channels]
    patch, reach, h, sigma = 3, 4, 0.12, 0.1
    border = reach + patch // 2
    padded = np.pad(image, ((border, border), (border, border), (0, 0)), mode="symmetric")
    expected = np.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            total, weights = np.zeros(channels), 0.0
            own = padded[i + reach : i + reach + patch, j + reach : j + reach + patch]
            for k in range(2 * reach + 1):
                for m in range(2 * reach + 1):
                    other = padded[i + k : i + k + patch, j + m : j + m + patch]
                    weight = math.exp(-max(((own - other) ** 2).mean() - 2 * sigma**2, 0) / h**2)
                    total, weights = total + weight * padded[i + k + patch // 2, j + m + patch // 2], weights + weight
            expected[i, j] = total / weights
    result = array(non_local_means(tensor(image), one(h), one(sigma), patch, reach))
    assert np.abs(result - expected).max() < 1e-12


def test_nlm_is_no_worse_than_scikit_image(noisy: np.ndarray) -> None:
    from skimage import data
    from skimage.restoration import denoise_nl_means

    # Equality cannot be asked: scikit-image sums over one row and column less than the patch and cuts small weights.
    truth = data.astronaut()[100:148, 180:234] / 255.0
    theirs = denoise_nl_means(noisy, 5, 8, h=0.08, sigma=0.1, fast_mode=True, channel_axis=-1)
    ours = array(load("nlm")(tensor(noisy), 0.1))
    assert ((ours - truth) ** 2).mean() <= ((theirs - truth) ** 2).mean()


@pytest.mark.parametrize("order", range(1, 9))
def test_daubechies_is_orthonormal_with_vanishing_moments(order: int) -> None:
    low, high = daubechies(order)
    for shift in range(0, 2 * order, 2):
        expected = 1.0 if shift == 0 else 0.0
        assert float((low[shift:] * low[: 2 * order - shift]).sum()) == pytest.approx(expected, abs=1e-9)
        assert float((high[shift:] * low[: 2 * order - shift]).sum()) == pytest.approx(0, abs=1e-9)
    for moment in range(order):
        scale = float((2 * order) ** moment)
        at = torch.arange(2 * order, dtype=torch.float64) ** moment
        assert float((high * at).sum()) / scale == pytest.approx(0, abs=1e-8)


def test_daubechies_equals_pywavelets() -> None:
    pywt = pytest.importorskip("pywt", reason="PyWavelets is absent")
    for order in (1, 2, 4, 8):
        low, high = daubechies(order)
        reference = pywt.Wavelet(f"db{order}")
        assert np.abs(low.numpy() - reference.rec_lo).max() < 1e-10
        assert np.abs(high.numpy() - reference.rec_hi).max() < 1e-10


def test_wavelet_rebuilds_the_image_when_nothing_is_shrunk() -> None:
    x = torch.rand(2, 3, 19, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for order in (1, 2, 4):
        prior = Wavelet(order=order)
        torch.testing.assert_close(prior.smooth(x, torch.full((2,), 1e-14, dtype=x.dtype), one(0.1)), x)


def test_wavelet_is_the_mean_over_all_shifts() -> None:
    """Against the decimated transform, shifted, thresholded and shifted back, for every shift."""
    pywt = pytest.importorskip("pywt", reason="PyWavelets is absent")
    levels, cut = 2, 0.4
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    margin = 2**levels
    padded = mirror(x, margin, margin)[0, 0].numpy()
    total = np.zeros_like(padded)
    for i in range(2**levels):
        for j in range(2**levels):
            shifted = np.roll(padded, (i, j), axis=(0, 1))
            average, *details = pywt.wavedec2(shifted, "db2", mode="periodization", level=levels)
            shrunk = [tuple(pywt.threshold(band, cut, "soft") for band in level) for level in details]
            total += np.roll(pywt.waverec2([average, *shrunk], "db2", mode="periodization"), (-i, -j), axis=(0, 1))
    expected = (total / 4**levels)[margin:-margin, margin:-margin]
    result = Wavelet(rule="soft", levels=levels).smooth(x, one(cut), one(0.1))[0, 0].numpy()
    assert np.abs(result - expected).max() < 1e-10


def test_wavelet_is_no_worse_than_scikit_image(noisy: np.ndarray) -> None:
    pytest.importorskip("pywt", reason="PyWavelets is absent")
    from skimage import data
    from skimage.restoration import denoise_wavelet

    truth = data.astronaut()[100:148, 180:234] / 255.0
    theirs = denoise_wavelet(noisy, sigma=0.1, channel_axis=-1, rescale_sigma=False)
    ours = array(load("wavelet")(tensor(noisy), 0.1))
    assert ((ours - truth) ** 2).mean() < ((theirs - truth) ** 2).mean()


@pytest.mark.parametrize(
    ("rule", "expected"), [("soft", 1.5), ("garrote", 15 / 8), ("sharp", 255 / 128), ("hard", 2.0)]
)
def test_threshold_rules(rule: str, expected: float) -> None:
    w = torch.tensor([-2.0, -0.4, 0.0, 0.5, 2.0])
    assert threshold(w, torch.tensor(0.5), rule).tolist() == pytest.approx([-expected, 0, 0, 0, expected])


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_follows_its_curve(family: str) -> None:
    sigma = torch.logspace(-3, 0, 40, dtype=torch.float64)
    for channels in (1, 3):
        strength = fitted_strength(family, sigma, channels)
        assert (strength > 0).all()
        assert float(strength[-1]) > 3 * float(strength[0])  # noise at 1 wants far more smoothing than at 0.001
        local = strength.log().diff() / sigma.log().diff()
        assert float(local.abs().max()) < 6  # no cliffs
    assert fitted_strength(family, torch.zeros(1), 3).tolist() == [0.0]


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("name", ["gaussian", "median", "bilateral", "wavelet", "tv", "nlm"])
def test_the_fitted_strength_is_near_the_best_on_an_image_outside_the_fit(name: str, sigma: float) -> None:
    from skimage import data

    truth = torch.from_numpy(data.chelsea()[90:186, 150:246] / 255.0).permute(2, 0, 1)[None].float()
    noisy = truth + sigma * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))

    def psnr(scale: float) -> float:
        prior = load(name, scale=scale)
        assert isinstance(prior, Smoother)
        return float(-10 * (prior(noisy, sigma) - truth).square().mean().log10())

    best = max(psnr(scale) for scale in (0.5, 0.71, 1.41, 2.0))
    assert psnr(1.0) > best - 0.5


def test_wrong_options_are_refused() -> None:
    for name, option, sentence in (
        ("tv", {"iterations": 0}, "iterations of tv must be at least 1, got 0"),
        ("nlm", {"patch": 4}, "odd number of pixels, got 4"),
        ("nlm", {"reach": 0}, "reach of nlm must be at least 1 pixel, got 0"),
        ("wavelet", {"rule": "mushy"}, "rule of wavelet must be one of soft, garrote, sharp, hard, got 'mushy'"),
        ("wavelet", {"order": 0}, "order of wavelet must be 1 to 8, got 0"),
        ("gaussian", {"scale": -1.0}, "scale of gaussian must be a positive number, got -1.0"),
        ("median", {"scale": math.nan}, "scale of median must be a positive number, got nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load(name, **option)
