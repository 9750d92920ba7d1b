"""The reported errors of mean and spread are those that ensembles scatter by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior
from invdiff.conformal import calibrate
from invdiff.montecarlo import Auto, Watch, figures, more_to_halve, standard_errors
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior

ENSEMBLES = 200


def _draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _gaussian(count: int) -> Tensor:
    """Ensembles of exact draws of a Gaussian posterior, (ensembles, count, 16)."""
    prior = GaussianPrior(torch.full((16,), 0.5), 0.04 * (0.5 * torch.eye(16) + 0.5))
    exact = prior.posterior(Likelihood(torch.full((16,), 0.6), Identity((16,)), GaussianNoise(0.1)))
    return exact.sample(ENSEMBLES * count, seed=1).reshape(ENSEMBLES, count, 16)


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "dependent"])
def test_reported_errors_are_the_scatter_over_ensembles(kind):
    count, record, label = 32, {}, "uncalibrated spread"
    if kind == "gaussian":
        ensembles = _gaussian(count)
    elif kind == "heavy":
        ensembles = _draws(ENSEMBLES, count, 16, seed=2).sinh()
    else:
        # Clouds of 4 whose particles share half of their variance.
        count, record, label = 96, {"cloud": 4}, "uncalibrated spread of dependent draws"
        shared = _draws(ENSEMBLES, 24, 1, 16, seed=3).expand(-1, -1, 4, -1)
        ensembles = (shared + _draws(ENSEMBLES, 24, 4, 16, seed=4)).reshape(ENSEMBLES, 96, 16)
    posteriors = [Posterior(draws, record, label) for draws in ensembles]
    reported = [standard_errors(posterior) for posterior in posteriors]
    means = torch.stack([posterior.mean() for posterior in posteriors])
    stds = torch.stack([posterior.std() for posterior in posteriors])
    for scatter, errors in ((means.std(0), [r.mean for r in reported]), (stds.std(0), [r.std for r in reported])):
        ratio = torch.stack(errors).square().mean(0).sqrt() / scatter
        # Each of 16 scatters over 200 ensembles is known to 5 %. Few draws tell little of heavy tails.
        assert float(ratio.mean()) == pytest.approx(1.0, abs=0.25 if kind == "heavy" else 0.06)
    naive = stds.mean(0) / count**0.5
    if kind == "dependent":
        assert float((naive / means.std(0)).mean()) < 0.8, "taken for independent the errors would be too small"


def test_independent_draws_give_the_textbook_and_the_jackknife():
    draws = _draws(12, 3).double().exp()
    found = standard_errors(Posterior(draws, {}))
    torch.testing.assert_close(found.mean, draws.std(0) / 12**0.5)
    variances = torch.stack([torch.cat([draws[:k], draws[k + 1 :]]).var(0) for k in range(12)])
    jackknife = (11 / 12 * (variances - variances.mean(0)).square().sum(0)).sqrt()
    torch.testing.assert_close(found.std, jackknife / (2 * draws.std(0)))


def test_errors_halve_with_three_times_as_many_more():
    posterior = Posterior(_draws(500, 40), {})
    more = more_to_halve(posterior)
    assert more == 1500
    larger = Posterior(_draws(500 + more, 40), {})
    for few, many in zip(standard_errors(posterior).rms(), standard_errors(larger).rms(), strict=True):
        assert many / few == pytest.approx(0.5, rel=0.05)
    assert figures(posterior)["more_to_halve"] == more


def test_values_far_from_0_and_values_that_do_not_differ():
    draws = 1000 + 1e-3 * _draws(50, 5).double()
    draws[:, 0] = 7.0
    found = standard_errors(Posterior(draws, {}))
    assert found.mean[0] == found.std[0] == 0
    torch.testing.assert_close(found.mean, draws.std(0) / 50**0.5)
    assert found.std[1:] == pytest.approx(float(1e-3 / 98**0.5), rel=0.5)


def test_draws_that_failed_and_clouds_that_are_not_whole_count_not():
    draws = _draws(10, 2, 3)
    broken = torch.cat([draws, torch.full((1, 2, 3), torch.nan)])
    broken[0, 1] = torch.nan
    record = {"failed": [{"draw": 10, "measurement": j, "step": 1} for j in range(2)], "measurements": 2}
    found = standard_errors(Posterior(broken, record | {"batched": True}))
    torch.testing.assert_close(found.mean[0], standard_errors(Posterior(draws[:, 0], {})).mean)
    torch.testing.assert_close(found.std[1], standard_errors(Posterior(draws[1:, 1], {})).std)
    dependent = "uncalibrated spread of dependent draws"
    whole = standard_errors(Posterior(draws[:9], {"cloud": 3}, dependent))
    torch.testing.assert_close(standard_errors(Posterior(draws, {"cloud": 3}, dependent)).mean, whole.mean)
    with pytest.raises(ValueError, match="needs at least 3 whole clouds of 4 draws: this posterior has 10 draws"):
        standard_errors(Posterior(draws, {"cloud": 4}, dependent))
    assert figures(Posterior(draws, {"cloud": 4}, dependent)) is None


def test_what_has_no_error_is_refused():
    with pytest.raises(ValueError, match="needs at least 3 draws that did not fail: this posterior has 2 draws"):
        standard_errors(Posterior(_draws(2, 3), {}))
    with pytest.raises(ValueError, match="standard_errors needs draws, and a point estimate has none"):
        standard_errors(Posterior(_draws(1, 3), {}, "point estimate"))
    assert figures(Posterior(_draws(2, 3), {})) is None


def test_calibrated_draws_have_the_mean_they_had():
    posterior = Posterior(0.1 * _draws(19, 20, 8), {"batched": True})
    calibrator = calibrate([posterior], [0.2 * _draws(20, 8, seed=1)])
    raw, scaled = standard_errors(posterior), standard_errors(calibrator(posterior))
    torch.testing.assert_close(scaled.mean, raw.mean)
    torch.testing.assert_close(scaled.std, calibrator.scale * raw.std)


def test_the_rule_depends_on_no_splitting():
    draws = 0.1 * _draws(200, 1, 30)
    found = []
    for step in (1, 3, 16, 200):
        watch, ends = Watch(Auto(tolerance=0.012, minimum=10), 4), []
        for part in draws.split(step):
            ends.append(watch.add(part))
            if ends[-1] is not None:
                break
        found.append((ends[-1], watch.record()))
    assert all(item == found[0] for item in found)
    end, record = found[0]
    assert end % 4 == 0
    assert 40 < end < 120
    reached = standard_errors(Posterior(draws[:end, 0], {})).rms()
    assert (record["mean_error"], record["std_error"]) == pytest.approx(reached, rel=1e-6)
    assert max(reached) <= 0.012 < max(standard_errors(Posterior(draws[: end - 4, 0], {})).rms())
