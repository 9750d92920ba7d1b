"""Exact posteriors are calibrated under every measure, and wrong ones are found out, with the right sign."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from invdiff import Likelihood, Posterior, calibration
from invdiff.calibration import ANOTHER_DRAW, PIXELS, RANDOM_POINT, Check
from invdiff.checked import Pooled
from invdiff.metrics import spread_over_error
from invdiff.noise import GaussianNoise
from invdiff.operators import Mask, random_mask
from invdiff.pooling import Estimate
from invdiff.priors import GaussianPrior
from invdiff.scores import stream

SHAPE, SIGMA, DRAWS, IMAGES = (1, 8, 8), 0.05, 39, 80
PATCHES = "means of 2x2 patches"


@functools.lru_cache(maxsize=1)
def exact() -> tuple[list[torch.Tensor], list[torch.Tensor], list[Likelihood]]:
    """Draws from exact posteriors (K, *SHAPE), the truths and the likelihoods."""
    prior = GaussianPrior.power_law(SHAPE)
    operator = Mask(random_mask(SHAPE, 0.5, seed=0), SHAPE)
    generator = torch.Generator().manual_seed(1)
    truths = prior.sample(IMAGES, seed=7)
    draws, likelihoods = [], []
    for i, truth in enumerate(truths):
        noise = SIGMA * torch.randn(operator.out_shape, generator=generator, dtype=torch.float64)
        y = operator(truth[None])[0] + noise
        likelihoods.append(Likelihood(y, operator, GaussianNoise(SIGMA)))
        draws.append(prior.posterior(likelihoods[-1]).sample(DRAWS, seed=1000 + i))
    return draws, list(truths), likelihoods


def changed(scale: float = 1.0, shift: float = 0.0) -> list[Posterior]:
    """The posteriors stretched about their means and shifted."""
    return [Posterior(x.mean(0) + scale * (x - x.mean(0)) + shift, {}) for x in exact()[0]]


@functools.lru_cache(maxsize=8)
def checked(scale: float = 1.0, shift: float = 0.0) -> Check:
    return calibration.check(changed(scale, shift), exact()[1], likelihoods=exact()[2])


def holds(found: Estimate, expected: float) -> bool:
    """Whether a figure is within about four standard errors of what is expected."""
    return abs(found.value - expected) < 2 * max(found.high - found.value, found.value - found.low)


def test_exact_posteriors_are_calibrated_under_every_measure() -> None:
    found = checked()
    assert set(found.pooled) == {PIXELS, RANDOM_POINT, ANOTHER_DRAW, PATCHES, "wavelet energy 1", "wavelet energy 2"}
    for quantity, pooled in found.pooled.items():
        for level, share in pooled.coverage.items():
            if (quantity, level) == (ANOTHER_DRAW, 0.95):
                assert share.images == 0  # 38 other draws do not reach 95 %
            else:
                assert share.images == IMAGES
                assert holds(share, level), (quantity, level)
        assert holds(pooled.spread_skill, 1)
        assert holds(pooled.bias, 0)
        assert holds(pooled.dispersion, 1)
        assert pooled.p > 0.01
        assert sum(pooled.histogram) == pytest.approx(1)
    assert holds(found.chi2, 1)
    assert all("nothing found against it" in line for line in found.lines()[:6])
    pixels = found.pooled[PIXELS]
    assert [round(pixels.coverage[level].value, 2) for level in found.levels] == pytest.approx(found.levels, abs=0.02)


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_wrong_width_is_found_with_its_sign(scale: float) -> None:
    found, narrow = checked(scale), scale < 1

    def beyond(figure: Estimate, expected: float, above: bool) -> bool:
        return figure.low > expected if above else figure.high < expected

    pixels = found.pooled[PIXELS]
    for level, share in pixels.coverage.items():
        assert beyond(share, level, not narrow)
    assert pixels.spread_skill.value == pytest.approx(scale, rel=0.05)
    assert beyond(pixels.dispersion, 1, narrow)
    assert holds(pixels.bias, 0)
    for quantity in (RANDOM_POINT, ANOTHER_DRAW):
        # Draws too narrow are nearer to each other, and to any point far away, than the truth is.
        assert beyond(found.pooled[quantity].bias, 0, narrow)
        assert found.pooled[quantity].p < 0.001
    assert beyond(found.pooled[PATCHES].dispersion, 1, narrow)
    assert beyond(found.pooled["wavelet energy 1"].bias, 0, narrow)
    assert beyond(found.chi2, 1, not narrow)
    lines = found.lines()
    assert f"pixels: varies too {'little' if narrow else 'much'} among the draws (p < 0.001)" in lines[0]
    assert f"draws too {'narrow' if narrow else 'wide'} or biased (p < 0.001)" in lines[1]
    assert lines[2].endswith("draws too narrow or biased (p < 0.001)" if narrow else "draws too wide (p < 0.001)")
    assert pixels.crps.value > checked().pooled[PIXELS].crps.value


@pytest.mark.parametrize("shift", [-0.05, 0.05])
def test_a_bias_is_found_with_its_sign(shift: float) -> None:
    found = checked(shift=shift)
    for quantity in (PIXELS, PATCHES):
        bias = found.pooled[quantity].bias
        assert bias.high < 0 if shift > 0 else bias.low > 0
        assert found.pooled[quantity].p < 0.001
    assert f"pixels: too {'high' if shift > 0 else 'low'} in the draws" in found.lines()[0]
    assert found.pooled["wavelet energy 1"].p == checked().pooled["wavelet energy 1"].p  # no detail is added
    assert found.pooled[PIXELS].crps.value > checked().pooled[PIXELS].crps.value


def test_tarp_is_the_rank_of_the_truths_distance_from_a_random_point() -> None:
    draws, truths, _ = exact()
    found, shares = checked(), []
    for i, (x, truth) in enumerate(zip(draws, truths, strict=True)):
        point = torch.rand(SHAPE, generator=stream(0, str(i), "reference"), dtype=torch.float64).numpy()
        nearer = (np.linalg.norm(x.numpy() - point, axis=(2, 3)) < np.linalg.norm(truth.numpy() - point)).sum()
        shares.append(nearer / DRAWS)  # f of Lemos et al.
        u = found.images[i].quantities[RANDOM_POINT].centre
        assert nearer <= u * (DRAWS + 1) <= nearer + 1
    curve = [np.mean(np.array(shares) < level) for level in np.linspace(0, 1, 21)]
    estimates = found.expected_coverage(list(np.linspace(0, 1, 21)))
    ours = [e.value for e in estimates]
    np.testing.assert_allclose(ours, curve, atol=0.06)
    np.testing.assert_allclose(ours, [(found.tarp <= level).double().mean() for level in np.linspace(0, 1, 21)])
    for level, e in zip(np.linspace(0, 1, 21)[1:-1], estimates[1:-1], strict=True):
        error = math.sqrt(e.value * (1 - e.value) / IMAGES)
        assert e.high - e.low == pytest.approx(2 * 1.96 * error, rel=0.25)
        assert holds(e, level)
    rows = found.record()["tarp"]
    assert [row["credibility"] for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert rows[4]["coverage_low"] < rows[4]["coverage"] < rows[4]["coverage_high"]


def test_tarp_sees_what_coverage_cannot() -> None:
    # All 16 values of a truth are one number and a little; of the draws each value is right and they know nothing of
    # each other.
    generator = torch.Generator().manual_seed(0)

    def together(*shape: int) -> torch.Tensor:
        one = 0.95 * torch.randn(*shape, 1, generator=generator) + math.sqrt(1 - 0.95**2) * torch.randn(
            *shape, 16, generator=generator
        )
        return 0.5 + 0.3 * one

    truths = together(150)
    right = calibration.check([Posterior(x, {}) for x in together(150, DRAWS)], truths).pooled
    alone = 0.5 + 0.3 * torch.randn(150, DRAWS, 16, generator=generator)
    wrong = calibration.check([Posterior(x, {}) for x in alone], truths).pooled
    for found in (right, wrong):
        assert all(holds(share, level) for level, share in found[PIXELS].coverage.items())
        assert found[PIXELS].p > 0.01
    assert right[RANDOM_POINT].p > 0.01
    assert wrong[RANDOM_POINT].p < 1e-6
    assert wrong[RANDOM_POINT].dispersion.low > 1
    means = {"mean": lambda x: x.mean(1)}
    other = calibration.check([Posterior(x, {}) for x in alone], truths, functionals=means)
    assert other.pooled["mean"].coverage[0.9].high < 0.6
    assert other.lines()[3].startswith("mean: varies too little among the draws (p < 0.001); nominal 90 % intervals")


def test_figures_are_those_of_the_posterior() -> None:
    found = calibration.check(changed()[0], exact()[1][0], likelihoods=exact()[2][0])
    posterior, truth = changed()[0], exact()[1][0]
    pixels = found.pooled[PIXELS]
    assert pixels.spread_skill.value == pytest.approx(
        spread_over_error(posterior.mean(), posterior.std(), DRAWS, truth), rel=1e-6
    )
    for level, share in pixels.coverage.items():
        low, high = posterior.interval(level)
        assert share.value == pytest.approx(((low <= truth) & (truth <= high)).double().mean().item())
        assert math.isnan(share.low)
    assert found.lines()[0] == "pixels: one image says nothing of calibration"
    assert "few for a verdict" in calibration.check(changed()[:5], exact()[1][:5]).lines()[0]


def test_the_intervals_are_over_images_and_not_over_pixels() -> None:
    # Every value of an image is one number: its 64 pixels say what one does.
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(40, DRAWS, 1, 1, 1, generator=generator)
    truths = torch.randn(40, 1, 1, 1, generator=generator)
    one = calibration.check([Posterior(x, {}) for x in draws], truths, functionals={}).pooled[PIXELS]
    wide = [Posterior(x.expand(-1, 1, 8, 8), {}) for x in draws]
    many = calibration.check(wide, truths.expand(-1, 1, 8, 8), functionals={}).pooled[PIXELS]
    for level in (0.5, 0.9):
        assert many.coverage[level] == pytest.approx(one.coverage[level])
    assert many.crps == pytest.approx(one.crps)
    assert many.p > 0.01


def test_nothing_global_is_touched(global_random_state_is_untouched: None) -> None:
    posteriors, truths = changed()[:3], exact()[1][:3]
    before = [p.draws.clone() for p in posteriors], [t.clone() for t in truths]
    calibration.check(posteriors, truths)
    assert all(torch.equal(p.draws, x) for p, x in zip(posteriors, before[0], strict=True))
    assert all(torch.equal(t, x) for t, x in zip(truths, before[1], strict=True))


def test_the_best_crps_is_that_of_the_right_width() -> None:
    found: dict[float, Pooled] = {scale: checked(scale).pooled[PIXELS] for scale in (0.7, 1.0, 1.4)}
    assert min(found, key=lambda scale: found[scale].crps.value) == 1.0
