"""DDNM and DDNM+ against the paper's steps with a dense SVD, in the paper's coordinates, VP on [-1, 1] images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Downsample, Identity, LinearOperator, Mask, Matrix, gaussian_psf, random_mask
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import DDNM, DDRM, CapabilityError

SHAPE = (1, 8, 8)
N = 64
MEMBERS = [(k, 0) for k in range(3)]


def operators() -> dict[str, LinearOperator]:
    generator = torch.Generator().manual_seed(0)
    return {
        "identity": Identity(SHAPE),
        "mask": Mask(random_mask(SHAPE, 0.5), SHAPE),
        "down": Downsample(4, SHAPE),
        "blur": Blur(gaussian_psf(0.7, 3), SHAPE),
        "matrix": Matrix(torch.randn(20, N, generator=generator).double() / 8, in_shape=SHAPE),
    }


def problem(name: str, sigma_y: float = 0.1) -> tuple[GaussianPrior, Likelihood, Tensor]:
    prior, operator = GaussianPrior.power_law(SHAPE), operators()[name]
    y = operator(prior.sample(1, seed=1))[0] + operator(torch.full((1, *SHAPE), 0.05))[0]
    x = 0.5 + 0.4 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prior, Likelihood(y, operator, GaussianNoise(sigma_y)), x


def in_the_papers_words(name: str, solver: DDNM, sigma_y: float) -> Tensor:
    """One step of VP DDPM or the code's DDIM, every quantity under its name in the paper."""
    prior, likelihood, x = problem(name, sigma_y)
    matrix = operators()[name](torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).reshape(N, -1).T
    u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
    s = torch.cat([s, torch.zeros(N - len(s))])
    inverse = torch.where(s > 1e-10, 1 / s.clamp_min(1e-10), 0.0)
    sigma, following, _ = solver.levels(prior)
    alpha_t, alpha_s = 1 / (1 + 4 * sigma**2), 1 / (1 + 4 * following**2)
    xt = math.sqrt(alpha_t) * (2 * x.flatten(1) - 1)
    x0 = 2 * prior(x, sigma).flatten(1) - 1
    noise = (xt - math.sqrt(alpha_t) * x0) / math.sqrt(1 - alpha_t)
    y = 2 * likelihood.y.flatten() - matrix.sum(1)
    gap = torch.zeros(3, N, dtype=torch.float64)
    gap[:, : len(y)] = (y - x0 @ matrix.T) @ u
    eps = MemberRandom(0, MEMBERS).normal(x).flatten(1)
    if solver.transition == "ancestral":
        beta = 1 - alpha_t / alpha_s
        a, b = math.sqrt(alpha_s) * beta / (1 - alpha_t), math.sqrt(alpha_t / alpha_s) * (1 - alpha_s) / (1 - alpha_t)
        sigma_t = math.sqrt((1 - alpha_s) / (1 - alpha_t) * beta)
    else:
        a, b, sigma_t = math.sqrt(alpha_s), 0.0, math.sqrt(1 - alpha_s)
    old, new = torch.zeros(N), torch.zeros(N)
    lambdas = torch.ones(N, dtype=torch.float64)
    for i in range(N):
        brought = a * 2 * sigma_y * float(inverse[i])
        if solver.transition == "ancestral":
            lambdas[i] = 1.0 if sigma_t >= brought else sigma_t / brought
            new[i] = math.sqrt(max(sigma_t**2 - (brought * float(lambdas[i])) ** 2, 0.0))
            continue
        keep = math.sqrt(1 - solver.eta**2)
        if brought == 0:
            old[i], new[i] = sigma_t * keep, sigma_t * solver.eta
        elif sigma_t < brought:
            lambdas[i], new[i] = keep * sigma_t / brought, sigma_t * solver.eta
        else:
            new[i] = math.sqrt(sigma_t**2 - brought**2)
    x0 = x0 + (lambdas * inverse * gap) @ vh
    xs = a * x0 + b * xt + (old * (noise @ vh.T)) @ vh + (new * (eps @ vh.T)) @ vh
    return (xs / math.sqrt(alpha_s) + 1) / 2


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("sigma_y", [0.1, 0.4, 0.0])
@pytest.mark.parametrize("transition", ["ddnm", "ancestral"])
def test_one_step_is_the_papers(name, sigma_y, transition):
    solver = DDNM(transition=transition, schedule="ve", steps=2, sigma_min=0.3, sigma_max=0.6)
    prior, likelihood, x = problem(name, sigma_y)
    ours = next(solver.iterate(likelihood, prior, x, MemberRandom(0, MEMBERS))).flatten(1)
    torch.testing.assert_close(ours, in_the_papers_words(name, solver, sigma_y), atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", operators())
def test_the_codes_steps_for_noise_are_those_of_ddrm(name):
    prior, likelihood, x = problem(name)
    settings = {"steps": 12, "eta": 0.85, "sigma_max": 20.0}
    *_, ours = DDNM(**settings).iterate(likelihood, prior, x, MemberRandom(0, MEMBERS))
    *_, ddrm = DDRM(**settings, eta_b=1.0).iterate(likelihood, prior, x, MemberRandom(0, MEMBERS))
    torch.testing.assert_close(ours, ddrm, atol=1e-9, rtol=0)


# The last step of ode3m and sde3m stops half-way to the estimate.
@pytest.mark.parametrize("transition", [name for name in DDNM.transitions() if name not in ("ode3m", "sde3m")])
@pytest.mark.parametrize("plus", [True, False])
def test_without_noise_every_transition_ends_on_the_measurement(transition, plus):
    solver = DDNM(steps=8, transition=transition, plus=plus)
    # The blur can be inverted, and leaves nothing to draw.
    for operator, free in ((operators()["down"], True), (Blur(gaussian_psf(0.5, 3), SHAPE, boundary="reflect"), False)):
        y = operator(GaussianPrior.power_law(SHAPE).sample(1, seed=1))[0]
        likelihood = Likelihood(y, operator, GaussianNoise(0.0))
        draws = sample(solver, likelihood, GaussianPrior.power_law(SHAPE), draws=2).draws
        torch.testing.assert_close(operator(draws), y.expand(2, *y.shape), atol=1e-6, rtol=0)
        assert (float((draws[0] - draws[1]).abs().max()) > 0.01) == free


def test_members_with_and_without_noise_do_not_mix():
    prior, _, _ = problem("mask")
    operator = operators()["mask"]
    y = operator(prior.sample(2, seed=1))
    joint = Likelihood(y, operator, GaussianNoise(torch.tensor([0.0, 0.1]).reshape(2, 1, 1, 1)))
    together = sample(DDNM(steps=6), joint, prior).draws[0]
    for j, sigma in enumerate((0.0, 0.1)):
        alone = sample(DDNM(steps=6), Likelihood(y, operator, GaussianNoise(sigma)), prior).draws[0]
        torch.testing.assert_close(together[j], alone[j], atol=1e-9, rtol=0)


@pytest.mark.parametrize(("length", "repeat", "calls"), [(1, 3, 36), (5, 2, 24), (100, 2, 24), (4, 1, 12)])
def test_time_travel_goes_through_each_stage_again(length, repeat, calls):
    prior, likelihood, _ = problem("mask")
    seen = []
    solver = DDNM(steps=12, travel_length=length, travel_repeat=repeat)
    result = sample(solver, likelihood, prior, on_step=lambda step, x: seen.append(x))
    assert result.record["nfe"] == len(seen) == calls
    plain = sample(DDNM(steps=12), likelihood, prior).draws
    assert torch.equal(result.draws, plain) == (repeat == 1)


def test_time_travel_returns_to_the_noise_it_left():
    """A prior of one image: after a stage all noise is fresh, so its level can be read off the iterate."""
    image = torch.full((1, 32, 32), 0.5, dtype=torch.float64)
    levels, seen = DDNM(steps=4, sigma_max=8.0).levels(GaussianPrior(image[:, :1, :1], torch.eye(1))), []
    likelihood = Likelihood(torch.zeros(1, 32, 32).double(), Mask(torch.zeros(32, 32), (1, 32, 32)), GaussianNoise(0.1))

    def watch(x, sigma):
        seen.append((float(sigma), float((x - 0.5).std())))
        return torch.full_like(x, 0.5)

    sample(DDNM(steps=4, sigma_max=8.0, eta=1.0, travel_length=2, travel_repeat=2), likelihood, watch)
    assert [level for level, _ in seen] == pytest.approx([*levels[:2], *levels[:2], *levels[2:4], *levels[2:4]])
    for level, found in seen:
        assert found == pytest.approx(level, rel=0.1)


def test_refusals():
    prior, likelihood, _ = problem("mask")
    reflect = Blur(gaussian_psf(1.0, 3), SHAPE, boundary="reflect")
    y = torch.full(SHAPE, 0.5)
    for given, sentence in (
        (Likelihood(y, reflect, GaussianNoise(0.1)), r"DDNM\+ needs an operator with an SVD where there is noise; Pad"),
        (Likelihood(y, Identity(SHAPE), PoissonNoise(0.1)), "DDNM needs GaussianNoise; this is PoissonNoise"),
        (Likelihood(y, Identity(SHAPE), GaussianNoise(torch.full(SHAPE, 0.1))), r"DDNM\+ needs one sigma per meas"),
    ):
        with pytest.raises(CapabilityError, match=sentence):
            sample(DDNM(steps=4), given, prior)
    with pytest.raises(CapabilityError, match=r"DDNM\+ has no 'heun' step for a measurement with noise: use"):
        sample(DDNM(steps=4, transition="heun"), likelihood, prior)
    with pytest.raises(ValueError, match="travel_repeat of DDNM is 0: expected a whole number from 1 on"):
        DDNM(travel_repeat=0)
    with pytest.raises(ValueError, match="plus of DDNM is 'maybe': expected true or false"):
        DDNM(plus="maybe")
