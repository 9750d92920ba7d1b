"""A guidance is one function, and any transition follows it; what guided solvers cannot do they say in a sentence."""

from __future__ import annotations

import pytest
import torch

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Identity, Mask, from_function, random_mask
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.solvers import DDNM, MMPS, TMPD, CapabilityError, DiffPIR, PiGDM
from invdiff.transitions import TRANSITIONS

SHAPE = (1, 8, 8)
STEPS = {"ancestral": 150, "ddim": 150, "heun": 40}


def problem() -> tuple[GaussianPrior, Likelihood]:
    prior, operator = GaussianPrior.power_law(SHAPE), Mask(random_mask(SHAPE, 0.5), SHAPE)
    return prior, Likelihood(operator(prior.sample(1, seed=1))[0] + 0.05, operator, GaussianNoise(0.1))


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_an_exact_guidance_gives_the_posterior_by_every_transition(transition):
    prior, likelihood = problem()
    exact = prior.posterior(likelihood)
    steps = STEPS.get(transition, 60)
    solver = MMPS(steps=steps, iterations=12, transition=transition, schedule="karras", sigma_max=20.0)
    posterior = sample(solver, likelihood, prior, draws=128, seed=0, micro_batch=128)
    scale = float(exact.std.square().mean().sqrt())
    assert float((posterior.mean() - exact.mean).square().mean().sqrt()) < 0.15 * scale
    assert float(posterior.std().square().mean().sqrt()) == pytest.approx(scale, rel=0.12)


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("solver", [PiGDM, TMPD, DiffPIR])
def test_every_guidance_runs_with_every_transition(solver, transition):
    prior, likelihood = problem()
    settings = {"steps": 40, "schedule": "karras"}
    chosen = solver(transition=transition, **settings)
    draws = sample(chosen, likelihood, prior, draws=32, micro_batch=32).draws
    posterior = prior.posterior(likelihood)
    # Approximate as they are, all are nearer to the posterior's mean than the prior's is.
    error = (draws.mean(0) - posterior.mean).square().mean()
    assert float(error) < 0.25 * float((prior.mean - posterior.mean).square().mean())
    other = "heun" if transition == "ode2m" else "ode2m"
    assert not torch.allclose(draws, sample(solver(transition=other, **settings), likelihood, prior, draws=32).draws)


@pytest.mark.parametrize(("solver", "own"), [(PiGDM, "pigdm"), (DiffPIR, "diffpir"), (DDNM, "ddnm"), (MMPS, None)])
def test_transitions_of_its_own_come_first(solver, own):
    assert solver.transitions() == ((own, *TRANSITIONS) if own else TRANSITIONS)
    known = ", ".join(solver.transitions())
    with pytest.raises(ValueError, match=f"transition of {solver.__name__} is 'euler': expected one of {known}"):
        solver(transition="euler")


@pytest.mark.parametrize("eta", [-0.1, 1.5, True, "half"])
def test_eta_is_a_share(eta):
    with pytest.raises(ValueError, match=r"eta of MMPS is .*: expected a number from 0 to 1\."):
        MMPS(eta=eta)


@pytest.mark.parametrize("solver", [PiGDM, MMPS, TMPD])
def test_refusals(solver):
    prior, likelihood = problem()
    name, y = solver.__name__, torch.full(SHAPE, 0.5)
    stiff = FunctionPrior(lambda x, sigma: x, name="stiff", differentiable=False)
    with pytest.raises(CapabilityError, match=f"{name} differentiates its prior, and stiff cannot be. Use KPS, DiffPI"):
        sample(solver(), likelihood, stiff)
    square = Likelihood(y, from_function(lambda x: x**2, SHAPE, linear=False), GaussianNoise(0.1))
    with pytest.raises(CapabilityError, match=rf"{name} needs a linear operator; .* is not one\. Use DAPS, TDS or DPS"):
        sample(solver(), square, prior)
    photons = Likelihood(y, Identity(SHAPE), PoissonNoise(0.1))
    with pytest.raises(CapabilityError, match=f"{name} needs GaussianNoise; this is PoissonNoise. Use DiffPIR, PnP"):
        sample(solver(), photons, prior)
    with pytest.raises(CapabilityError, match=f"{name} needs a likelihood: to draw from the prior alone use DDPM"):
        sample(solver(), None, prior)
