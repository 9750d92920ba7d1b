"""TDS, FPS-SMC and MCGdiff: a large cloud is the law that each paper says it is, in closed form for a Gaussian chain.

With few steps the chain of the steps is far from the prior, so that the exact posterior would be the wrong answer here:
what a particle filter converges to is the posterior of the chain.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Identity, Mask, Matrix, from_function, gaussian_psf
from invdiff.priors import GaussianMixturePrior, GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import FPSSMC, TDS, MCGDiff
from invdiff.solvers.base import SingularCoordinates
from invdiff.solvers.mcgdiff import _Seen
from invdiff.solvers.tds import _Misfit, _step

MEAN = torch.tensor([0.3, 0.6], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.05, 0.03], [0.03, 0.04]], dtype=torch.float64)
PRIOR = GaussianPrior(MEAN, COVARIANCE)
ROW = torch.tensor([[0.8, 0.4]], dtype=torch.float64)
Y, SIGMA_Y = torch.tensor([0.9], dtype=torch.float64), 0.1
FEW = {"steps": 6, "schedule": "karras", "sigma_min": 0.02, "sigma_max": 3.0, "particles": 20_000, "keep": "cloud"}
EYE = torch.eye(2, dtype=torch.float64)


class Normal:
    """A two-dimensional normal that is moved by affine maps and conditioned."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance

    def moved(self, matrix: Tensor, offset: Tensor, noise: Tensor) -> Normal:
        return Normal(matrix @ self.mean + offset, matrix @ self.covariance @ matrix.T + noise)

    def given(self, row: Tensor, offset: Tensor, noise: float, value: Tensor) -> Normal:
        cross = self.covariance @ row.T
        gain = cross / (row @ cross + noise)
        centre = self.mean + (gain @ (value - offset - row @ self.mean)[:, None])[:, 0]
        return Normal(centre, self.covariance - gain @ cross.T)


def denoiser(sigma: float) -> tuple[Tensor, Tensor]:
    """M and b of D(x, sigma) = M x + b."""
    shrink = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * EYE)
    return shrink, (EYE - shrink) @ MEAN


def start() -> Normal:
    return Normal(torch.full((2,), 0.5, dtype=torch.float64), FEW["sigma_max"] ** 2 * EYE)


def likelihood(sigma_y: float = SIGMA_Y) -> Likelihood:
    return Likelihood(Y, Matrix(ROW), GaussianNoise(sigma_y))


def drawn(solver, random: MemberRandom) -> Tensor:
    with torch.no_grad():
        like = torch.empty(len(random), solver.particles, 2, dtype=torch.float64)
        x = solver.start(likelihood(), PRIOR, like, random)
        *_, last = solver.iterate(likelihood(), PRIOR, x, random)
    return last


def assert_law(cloud: Tensor, law: Normal) -> None:
    std = law.covariance.diagonal().sqrt()
    torch.testing.assert_close(cloud.mean(0) / std, law.mean / std, atol=0.06, rtol=0)
    torch.testing.assert_close(
        cloud.T.cov() / torch.outer(std, std), law.covariance / torch.outer(std, std), atol=0.08, rtol=0
    )


@pytest.mark.parametrize("tau", [0.17, 1.0, None])
def test_tds_is_the_posterior_of_the_chain_whatever_its_twist(tau):
    # Steps that a guided proposal can follow: with longer ones the weights need far more particles.
    solver = TDS(tau=tau, **FEW | {"steps": 8, "sigma_max": 1.0, "sigma_min": 0.1})
    law = Normal(torch.full((2,), 0.5, dtype=torch.float64), EYE)
    for sigma, t in itertools.pairwise(solver.levels(PRIOR)):
        shrink, offset = denoiser(sigma)
        share = (t / sigma) ** 2
        law = law.moved(share * EYE + (1 - share) * shrink, (1 - share) * offset, t**2 * (1 - share) * EYE)
    law = law.given(ROW, torch.zeros(1).double(), SIGMA_Y**2, Y)
    assert_law(drawn(solver, MemberRandom(0, [(0, 0)]))[0], law)


@pytest.mark.parametrize("c", [0.95, 0.5])
def test_fps_smc_filters_the_sequence_that_it_draws(c):
    solver = FPSSMC(c=c, **FEW)
    levels = solver.levels(PRIOR)
    key = [(0, 0)]
    random = MemberRandom(0, key)
    random.normal(torch.empty(1, solver.particles, 2))  # the start, which is drawn before the sequence
    paths = solver.paths(SingularCoordinates(likelihood(), Y), levels[:-1], torch.empty(1, 2).double(), random)
    # u and s of one row: u = 1 up to a sign, which ybar = u^T y / s shares with v.
    direction = SingularCoordinates(likelihood(), Y).operator.v(torch.ones(1, 1, dtype=torch.float64))
    noise = (SIGMA_Y / float(ROW.norm())) ** 2
    law = start().given(direction, torch.zeros(1).double(), noise, paths[0][0])
    for (sigma, t), path in zip(itertools.pairwise(levels[:-1]), paths[1:], strict=True):
        shrink, offset = denoiser(sigma)
        share = (1 - c) ** 0.5 * t / sigma
        law = law.moved(share * EYE + (1 - share) * shrink, (1 - share) * offset, c * t**2 * EYE)
        law = law.given(direction, torch.zeros(1).double(), noise, path[0])
    law = law.moved(*denoiser(levels[-2]), torch.zeros(2, 2).double())
    assert_law(drawn(solver, MemberRandom(0, key))[0], law)


def test_the_sequence_of_fps_smc_is_the_noisy_image_seen_through_a():
    solver = FPSSMC(c=0.6)
    random = MemberRandom(0, [(k, 0) for k in range(4000)])
    seen = SingularCoordinates(likelihood(), Y)
    paths = torch.stack(solver.paths(seen, [3.0, 1.0, 0.2], torch.empty(4000, 2).double(), random))[..., 0]
    torch.testing.assert_close(paths.mean(1), seen.ybar.flatten().expand(3), atol=0.15, rtol=0)
    torch.testing.assert_close(paths.std(1) / torch.tensor([3.0, 1.0, 0.2]), torch.ones(3).double(), atol=0.03, rtol=0)
    assert float(paths[:2].corrcoef()[0, 1]) == pytest.approx(0.4**0.5, abs=0.03)


def test_mcgdiff_is_the_chain_that_passes_the_measurement_at_its_noise_level():
    solver = MCGDiff(**FEW)
    tau = SIGMA_Y / float(ROW.norm())
    direction = ROW / ROW.norm()
    onto = direction.T @ direction
    ybar = Y / ROW.norm()
    law = start()
    for sigma, t in itertools.pairwise(solver.levels(PRIOR)):
        shrink, offset = denoiser(sigma)
        share = (t / sigma) ** 2
        matrix, shift, noise = share * EYE + (1 - share) * shrink, (1 - share) * offset, t**2 * (1 - share) * EYE
        if sigma > tau > t:
            stop = (tau / sigma) ** 2
            row = direction @ (stop * EYE + (1 - stop) * shrink)
            law = law.given(row, (1 - stop) * direction @ offset, tau**2 * (1 - stop), ybar)
            rest = (t / tau) ** 2
            matrix = (EYE - onto) @ matrix + (1 - rest) * onto @ shrink
            shift = (EYE - onto) @ shift + (1 - rest) * onto @ offset + rest * (direction.T @ ybar)
            noise = (EYE - onto) * t**2 * (1 - share) + onto * t**2 * (1 - rest)
        law = law.moved(matrix, shift, noise)
    assert_law(drawn(solver, MemberRandom(0, [(0, 0)]))[0], law)


def test_mcgdiff_in_the_papers_coordinates():
    """Weight and move of algorithm 1, written for x_t = sqrt(abar) (2 x - 1) + ... with kappa = 0 and one tau."""
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.rand(2, 1, 7, 1, 4, 4, generator=generator, dtype=torch.float64)
    sigma, t, sigma_y = 0.9, 0.4, 0.1
    y = torch.rand(1, 4, 4, generator=generator, dtype=torch.float64)
    seen = _Seen(Likelihood(y, Identity((1, 4, 4)), GaussianNoise(sigma_y)), x, 0.005)
    z, z0 = x[0].flatten(1), x0[0].flatten(1)

    def abar(level: float) -> float:
        return 1 / (1 + 4 * level**2)

    now, following, at_tau = abar(sigma), abar(t), abar(sigma_y)
    noisy, clean = now**0.5 * (2 * z - 1), 2 * z0 - 1
    eps = (noisy - now**0.5 * clean) / (1 - now) ** 0.5
    variance = (1 - following) / (1 - now) * (1 - now / following)
    mean = following**0.5 * clean + (1 - following - variance) ** 0.5 * eps
    rescaled = 2 * y.flatten() - 1
    foreseen = (mean - following**0.5 * rescaled).square() / (variance + 1 - following / at_tau)
    potential = (noisy - now**0.5 * rescaled).square() / (1 - now / at_tau)
    weights = -0.5 * (foreseen - potential).sum(1)
    ours = seen.log_weights(x.flatten(0, 1), x0.flatten(0, 1), sigma, t)
    torch.testing.assert_close(ours, weights)
    gain = variance / (variance + 1 - following / at_tau)
    e = torch.randn(7, 16, generator=generator, dtype=torch.float64)
    paper = gain * following**0.5 * rescaled + (1 - gain) * mean + ((1 - following / at_tau) * gain) ** 0.5 * e
    moved = seen.move(x.flatten(0, 1), x0.flatten(0, 1), e.reshape(7, 1, 4, 4), sigma, t)
    torch.testing.assert_close(moved.flatten(1), (paper / following**0.5 + 1) / 2)


@pytest.mark.parametrize("operator", [Blur(gaussian_psf(1.0, 5), (1, 6, 6)), Downsample(2, (1, 6, 6))])
def test_the_twist_of_tds_is_a_normal_with_the_operators_covariance(operator):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(3, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = operator(torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64))[0]
    columns = operator(torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)).flatten(1).T
    covariance = 0.05**2 * torch.eye(len(columns)).double() + 0.3 * columns @ columns.T
    dense = torch.distributions.MultivariateNormal(y.flatten(), covariance)
    exact = dense.log_prob(x0.flatten(1) @ columns.T)
    ours = _Misfit(Likelihood(y, operator, GaussianNoise(0.05)), x0)(x0, 0.3)
    torch.testing.assert_close(ours - ours[0], exact - exact[0])


def test_the_guide_of_tds_is_the_gradient_of_its_twist():
    x = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, solver = 0.7, TDS(tau=0.3)
    _, twist, guide = solver._twisted(_Misfit(likelihood(), x), PRIOR, x, sigma)
    shrink, offset = denoiser(sigma)
    spread = sigma**2 * 0.3**2 / (sigma**2 + 0.3**2)
    variance = SIGMA_Y**2 + spread * float(ROW.square().sum())
    residual = Y - (x[0] @ shrink.T + offset) @ ROW.T
    torch.testing.assert_close(twist[0], -0.5 * residual[:, 0] ** 2 / variance)
    torch.testing.assert_close(guide[0], sigma**2 * residual / variance * (ROW @ shrink))


def test_a_step_of_tds_is_azulas():
    """The same particle, twist and noise: the same next particle, and the same weight."""
    guidance = pytest.importorskip("azula.guidance.tds", reason="the optional package azula is not installed")
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):
        schedule = staticmethod(lambda t: (torch.ones_like(t), t))

        def forward(self, x_t, t, **_):
            return DiracPosterior(PRIOR(x_t, float(t)))

    solver, sigma, t = TDS(tau=0.3), 0.7, 0.4

    def twist(x0: Tensor, level: Tensor) -> Tensor:
        variance = SIGMA_Y**2 + solver._spread(float(level)) * float(ROW.square().sum())
        return -0.5 * (Y - x0 @ ROW.T).square() / variance

    x = torch.rand(1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    carry: dict[str, Tensor] = {}
    levels = [torch.tensor(level, dtype=torch.float64) for level in (sigma, t)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        following = guidance.TDSSampler(Exact(), twist, silent=True).step(x[0], *levels, carry)
    x0, log_twist, guide = solver._twisted(_Misfit(likelihood(), x), PRIOR, x, sigma)
    still, _ = _step(x, x0, guide, sigma, t, torch.zeros_like(x))
    eps = (following - still) / (t * (1 - (t / sigma) ** 2) ** 0.5)
    ours, ratio = _step(x, x0, guide, sigma, t, eps)
    torch.testing.assert_close(ours[0], following)
    torch.testing.assert_close(ratio - log_twist, carry["log_w"][None])
    assert 0 < eps.abs().max() < 4


@pytest.mark.parametrize("solver", [TDS(tau=None, steps=60), MCGDiff(steps=60)])
def test_the_weights_find_the_weights_of_the_modes(solver):
    """Two modes told apart by a coordinate that is not measured; guidance alone knows nothing of their weights."""
    means = torch.tensor([[0.0, 0.2], [1.0, 0.8]], dtype=torch.float64)
    prior = GaussianMixturePrior(torch.tensor([0.3, 0.7]), means, torch.tensor([0.01, 0.01]))
    given = Likelihood(torch.tensor([0.42]).double(), Matrix([[0.0, 1.0]]), GaussianNoise(0.2))
    exact = float(prior.posterior(given).weights[1])
    many = replace(solver, particles=1000, keep="cloud", sigma_max=5.0, schedule="karras", sigma_min=0.01)
    draws = sample(many, given, prior, draws=16_000, in_shape=(2,), micro_batch=16).draws
    assert 0.3 < exact < 0.6
    assert float((draws[:, 0] > 0.5).double().mean()) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("solver", [FPSSMC(), MCGDiff()])
def test_without_noise_the_measurement_is_met(solver):
    prior = GaussianPrior.power_law((1, 8, 8))
    mask = Mask((torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).double(), (1, 8, 8))
    y = mask(prior.sample(1, seed=1))[0]
    given = Likelihood(y, mask, GaussianNoise(0.0))
    draws = sample(replace(solver, steps=30, particles=8), given, prior, draws=8).draws
    limit = 1e-12 if isinstance(solver, MCGDiff) else 0.02
    assert (mask(draws) - y).abs().max() < limit
    assert draws.std(0)[mask.singular.reshape(1, 8, 8) == 0].min() > 0.01


def test_particles_below_the_noise_of_the_measurement_are_not_resampled():
    draws = sample(MCGDiff(**FEW | {"particles": 500}), likelihood(), PRIOR, draws=500, in_shape=(2,)).draws
    assert len(draws.unique(dim=0)) == 500


def test_tds_takes_what_is_not_linear():
    square = from_function(lambda x: x**2, (2,), linear=False)
    given = Likelihood(torch.tensor([0.25, 0.49]).double(), square, GaussianNoise(0.02))
    draws = sample(TDS(particles=64, keep="cloud"), given, PRIOR, draws=64, in_shape=(2,)).draws
    torch.testing.assert_close(draws.mean(0).abs(), torch.tensor([0.5, 0.7]).double(), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FPSSMC(c=0.0), r"c of FPSSMC is 0\.0: expected a number above 0 and up to 1"),
        (lambda: FPSSMC(c=True), "c of FPSSMC is True: expected a number above 0 and up to 1"),
        (lambda: TDS(tau=-1.0), r"tau of TDS is -1\.0: expected a finite number above 0"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
