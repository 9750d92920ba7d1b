"""Calibrated intervals hold on new images as often as promised, and what would not do so is refused or says it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from invdiff import Posterior
from invdiff.conformal import calibrate
from invdiff.risk import hoeffding_bentkus, images_needed

TRIALS, DRAWS, VALUES = 200, 19, 16
ALPHA, DELTA = 0.1, 0.1


def _images(
    count: int, seed: int, spread: float, varying: float, hopeless: float = 0.0
) -> tuple[Posterior, torch.Tensor]:
    """Posteriors of `count` images whose draws are `spread` times too wide, by another factor for every image.

    Of a share of them, the hopeless ones, nearly every value lies outside.
    """
    random = torch.Generator().manual_seed(seed)
    scale = (0.05 * torch.randn(count, 1, generator=random)).exp() * 0.1
    wrong = spread * (varying * torch.randn(count, 1, generator=random)).exp()
    wrong = torch.where(torch.rand(count, 1, generator=random) < hopeless, wrong * 0.01, wrong)
    draws = scale * wrong * torch.randn(DRAWS, count, VALUES, generator=random)
    truth = scale * torch.randn(count, VALUES, generator=random)
    return Posterior(draws, {"batched": True}), truth


def _needed(posterior: Posterior, truth: torch.Tensor) -> np.ndarray:
    """The scale at which each value comes to lie inside, (images, values): 19 draws have their extremes as interval."""
    mean, draws = posterior.draws.mean(0), posterior.draws
    away = truth - mean
    return (away.abs() / torch.where(away > 0, draws.amax(0) - mean, mean - draws.amin(0))).numpy()


KINDS = {"too narrow": (0.5, 0.3), "too wide": (2.0, 0.3), "some hopeless": (1.0, 0.3, 0.15)}


@pytest.fixture(scope="module", params=KINDS)
def trials(request):
    """What scale each of many calibrations found, by both methods and without any correction, and the true risks."""
    kind = KINDS[request.param]
    everyone = np.sort(_needed(*_images(20_000, 10**6, *kind)).ravel())

    def risk(scale: float) -> float:
        return 1 - float(np.searchsorted(everyone, scale, side="right")) / everyone.size

    found: dict[str, list[float]] = {"crc": [], "rcps": [], "plain crc": [], "plain rcps": []}
    for trial in range(TRIALS):
        for method, count in (("crc", 12), ("rcps", 30)):
            posterior, truth = _images(count, trial, *kind)
            found[method].append(risk(calibrate([posterior], [truth], 1 - ALPHA, DELTA, method).scale))
            needed = np.sort(_needed(posterior, truth).ravel())
            found[f"plain {method}"].append(risk(needed[math.ceil((1 - ALPHA) * needed.size) - 1]))
    return request.param, {name: np.array(risks) for name, risks in found.items()}


def test_rcps_breaks_its_promise_no_oftener_than_it_says(trials):
    _, risks = trials
    allowed = binom.ppf(0.99, TRIALS, DELTA)
    assert (risks["rcps"] > ALPHA).sum() <= allowed
    assert (risks["plain rcps"] > ALPHA).sum() > allowed, "a choice without the bound breaks it"


def test_crc_keeps_the_mean_risk(trials):
    kind, risks = trials
    crc, plain = risks["crc"], risks["plain crc"]
    assert crc.mean() <= ALPHA + 2.6 * crc.std(ddof=1) / TRIALS**0.5
    assert crc.mean() > 0.01, "and it is no trivial promise"
    if kind == "some hopeless":
        assert plain.mean() > ALPHA + 2.6 * plain.std(ddof=1) / TRIALS**0.5, "a choice without the term does not"


def test_the_bound_is_that_of_hoeffding_and_bentkus():
    for mean, count, expected in ((0.05, 100, 0.1), (0.0, 22, 0.1), (0.09, 1000, 0.1), (0.2, 7, 0.5), (0.3, 50, 0.2)):
        low = min(mean, expected)
        terms = [(low, expected), (1 - low, 1 - expected)]
        hoeffding = math.exp(-count * sum(a * math.log(a / b) for a, b in terms if a > 0))
        most = math.ceil(count * mean)
        chances = [math.comb(count, k) * expected**k * (1 - expected) ** (count - k) for k in range(most + 1)]
        assert sum(chances) == pytest.approx(binom.cdf(most, count, expected), rel=1e-9)
        bentkus = math.e * sum(chances)
        assert hoeffding_bentkus(mean, count, expected) == pytest.approx(min(hoeffding, bentkus, 1.0), rel=1e-9)


@pytest.mark.parametrize("binary", [True, False])
def test_the_bound_holds_for_risks_between_0_and_1(binary):
    random = np.random.default_rng(0)
    for count, expected in ((30, 0.1), (150, 0.05)):
        # Means of independent risks of this expectation: 0 or 1, or spread between.
        b = (1 - expected) / expected
        risks = random.random((20_000, count)) < expected if binary else random.beta(0.3, 0.3 * b, size=(20_000, count))
        means = np.sort(risks.mean(1))
        for chance in (0.01, 0.1, 0.3):
            at = float(means[int(chance * len(means))])
            smaller = float((means <= at).mean())
            assert hoeffding_bentkus(at, count, expected) >= smaller - 3 * (smaller / len(means)) ** 0.5


def test_the_scale_is_the_smallest_of_all_that_are_certified():
    posterior, truth = _images(60, 5, 0.6, 0.5)
    needed = _needed(posterior, truth)
    for method in ("crc", "rcps"):
        calibrator = calibrate([posterior], [truth], method=method)

        def certified(scale: float, method: str = method) -> bool:
            risk = float((needed > scale).mean(1).mean())
            return 60 / 61 * risk + 1 / 61 <= 0.1 if method == "crc" else hoeffding_bentkus(risk, 60, 0.1) < 0.1

        # Critical scales are sorted: brute force tries every one.
        best = next(scale for scale in np.sort(needed.ravel()) if certified(scale))
        assert calibrator.scale == pytest.approx(best, rel=1e-5)
        assert calibrator.risk == pytest.approx(float((needed > best * 1.00001).mean()), abs=1e-9)
        assert calibrator.risk_before == pytest.approx(float((needed > 1).mean()), abs=1e-9)


def test_the_interval_of_the_result_leaves_out_the_share_that_was_certified():
    posterior, truth = _images(60, 5, 0.6, 0.5)
    calibrator = calibrate([posterior], [truth])
    low, high = calibrator(posterior).interval(0.9)
    outside = float(((truth < low - 1e-6) | (truth > high + 1e-6)).double().mean())
    assert outside == pytest.approx(calibrator.risk, abs=2 / truth.numel())


def test_one_posterior_for_each_image_is_the_same_as_one_of_many_measurements():
    posterior, truth = _images(20, 1, 0.7, 0.3)
    single = [Posterior(posterior.draws[:, k], {}) for k in range(20)]
    together = calibrate([posterior], [truth])
    apart = calibrate(iter(single), (image.numpy() for image in truth))
    assert (apart.scale, apart.risk, apart.images) == (together.scale, together.risk, 20)
    assert apart.sha256 == together.sha256
    assert len(set(apart.sha256)) == 20


def test_measurements_of_one_image_are_one_unit():
    posterior, truth = _images(20, 1, 0.7, 0.3)
    other = Posterior(posterior.draws.flip(1) * 1.3, {"batched": True})
    both = Posterior(torch.stack([posterior.draws, other.draws.flip(1)], 2), {"batched": True})
    pairs = [Posterior(both.draws[:, k], {"batched": True}) for k in range(20)]  # two measurements of one image
    calibrator = calibrate(pairs, truth)
    assert calibrator.images == 20
    posteriors = [Posterior(pair.draws[:, j], {}) for pair in pairs for j in range(2)]
    truths, labels = [truth[k] for k in range(20) for _ in range(2)], [k for k in range(20) for _ in range(2)]
    assert calibrate(posteriors, truths, groups=labels).scale == calibrator.scale
    needed = np.stack([_needed(Posterior(both.draws[:, :, j], {}), truth) for j in range(2)])
    assert calibrator.risk == pytest.approx(float((needed > calibrator.scale * 1.00001).mean()), abs=1e-9)
    assert calibrate(posteriors, truths).scale == calibrator.scale, "the same truth is the same image"
    with pytest.raises(ValueError, match=r"Posterior 1: its truth is in the groups 0 and 1: .* the same label"):
        calibrate(posteriors, truths, groups=range(40))
    crops = calibrate([posterior], [truth], groups=[[k // 2 for k in range(20)]])
    assert crops.images == 10


@pytest.mark.parametrize(("method", "level", "delta"), [("crc", 0.9, 0.1), ("crc", 0.95, 0.1), ("rcps", 0.9, 0.1)])
def test_too_few_images_are_refused_with_the_number_that_is_needed(method, level, delta):
    needed = images_needed(method, level, delta)
    draws = torch.randn(39, needed, 4, generator=torch.Generator().manual_seed(0))
    posterior, truth = Posterior(draws, {"batched": True}), 0.1 * draws[0]
    assert calibrate([posterior], [truth], level, delta, method).images == needed
    fewer = Posterior(draws[:, 1:], {"batched": True})
    words = rf"{method} at level .* needs at least {needed} images, and there are {needed - 1}"
    with pytest.raises(ValueError, match=words):
        calibrate([fewer], [truth[1:]], level, delta, method)


def test_the_numbers_that_are_needed():
    assert [images_needed("crc", level) for level in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]
    assert images_needed("rcps", 0.9, 0.1) == math.ceil(math.log(0.1) / math.log(0.9))
    assert 100 < images_needed("rcps", 0.9, 0.1, mean=0.05) < 200, "hundreds, as soon as something is outside"
    with pytest.raises(ValueError, match=r"mean is 0\.1: expected a risk from 0 to below 1 - level"):
        images_needed("rcps", 0.9, 0.1, mean=0.1)


def test_where_draws_do_not_differ():
    posterior, truth = _images(30, 1, 0.7, 0.3)
    draws = posterior.draws.clone()
    draws[:, :, :1] = 0.5  # one value of 16 is fixed by the measurement, and right but for rounding
    outside = float((_needed(posterior, truth)[:, 1:] > 1).sum()) / truth.numel()
    for value in (0.5, 0.5 + 5e-7):
        truth[:, :1] = value
        found = calibrate([Posterior(draws, {"batched": True})], [truth])
        assert found.risk_before == pytest.approx(outside, abs=1e-9)
    draws[:, :, :8], truth[:, :8] = 0.5, 0.6  # half of them is certain, and wrong
    with pytest.raises(ValueError, match="No scale is enough for crc at level 90 %: 50 % of an image's values lie"):
        calibrate([Posterior(draws, {"batched": True})], [truth])
    with pytest.raises(ValueError, match="Every truth is the mean of its draws: expected the true images"):
        calibrate([posterior], [posterior.mean()])


def test_a_mean_outside_the_interval_counts_as_outside_at_every_scale():
    # Of 39 draws 38 are 0 and one is 39: the interval of the second and the last but one is [0, 0], the mean 1.
    draws = torch.zeros(39, 12, 10)
    draws[-1, :, 0] = 39.0
    draws[:, :, 1:] = torch.randn(39, 12, 9, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(12, 10)
    truth[:, 1:] = 0.01 * torch.randn(12, 9, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="10 % of an image's values lie outside at every scale"):
        calibrate([Posterior(draws, {"batched": True})], [truth])


def test_draws_that_failed_count_not():
    posterior, truth = _images(30, 1, 0.7, 0.3)
    more = torch.cat([posterior.draws, torch.full((1, 30, VALUES), torch.nan)])
    lost = [{"draw": 19, "measurement": j, "step": 1} for j in range(30)]
    record = {"batched": True, "measurements": 30, "failed": lost}
    assert calibrate([Posterior(more, record)], [truth]).scale == calibrate([posterior], [truth]).scale
    one = {"batched": True, "measurements": 30, "failed": [{"draw": 3, "measurement": 7, "step": 1}]}
    with pytest.raises(
        ValueError, match="Posterior 0: too many draws of measurement 7 failed for an interval of level"
    ):
        calibrate([Posterior(posterior.draws, one)], [truth])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"level": 1.0}, ValueError, r"level is 1\.0: expected a probability"),
        ({"delta": 0, "method": "rcps"}, ValueError, "delta is 0: expected a probability"),
        ({"method": "split"}, ValueError, "method is 'split': expected 'crc'"),
        ({"level": 0.95}, ValueError, "Posterior 0: A 95% interval needs at least 39 draws: this posterior has 19"),
        (
            {"truths": [torch.zeros(3)]},
            ValueError,
            r"Posterior 0: its truth has the shape \(3,\), and its draws",
        ),
        (
            {"truths": [torch.full((30, 16), torch.inf)]},
            ValueError,
            "Posterior 0: its truth has values that are not fin",
        ),
        ({"truths": []}, ValueError, "truths end after 0, before posteriors: give one of each for an image"),
        ({"groups": [[1, 2]]}, ValueError, "Posterior 0: groups has 2 labels for it, and it has 30 truths"),
        ({"posteriors": [torch.zeros(19, 3)]}, TypeError, "Posterior 0: expected a Posterior, as sample"),
        (
            {"posteriors": Posterior(torch.zeros(19, 3), {})},
            TypeError,
            r"posteriors is one Posterior: .* \[posterior\]",
        ),
        ({"posteriors": [Posterior(torch.zeros(1, 3), {}, "point estimate")]}, ValueError, "a point estimate has no"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change, error, words):
    posterior, truth = _images(30, 1, 0.7, 0.3)
    settings = {"posteriors": [posterior], "truths": [truth]} | change
    with pytest.raises(error, match=words):
        calibrate(**settings)
