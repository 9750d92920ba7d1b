"""What a refusal recommends is taken: each solver that it names accepts the same operator, noise and prior."""

from __future__ import annotations

import re

import pytest
import torch

from invdiff import Likelihood, solvers
from invdiff.noise import GaussianNoise, NoiseModel, PoissonNoise
from invdiff.operators import Blur, Identity, Operator, from_function, gaussian_psf
from invdiff.priors import FunctionPrior

SHAPE = (1, 8, 8)
OPERATORS: dict[str, Operator] = {
    "SVD": Identity(SHAPE),
    "linear": Blur(gaussian_psf(1.0, 3), SHAPE, boundary="reflect"),
    "nonlinear": from_function(lambda x: x**2, SHAPE, linear=False),
}
NOISES: dict[str, NoiseModel] = {
    "one sigma": GaussianNoise(0.1),
    "a sigma per pixel": GaussianNoise(torch.linspace(0.1, 0.2, 64).reshape(SHAPE)),
    "photons": PoissonNoise(0.1),
}
CLASSES = {type(solvers.load(name)).__name__: name for name in solvers.names()}
RESTORING = sorted(name for name in solvers.names() if not isinstance(solvers.load(name), solvers.PriorSampler))


def recommended(name: str, likelihood: Likelihood, prior: FunctionPrior) -> list[str]:
    """The solvers that a refusal names after "Use"; none where it takes the problem, or asks for another setting."""
    try:
        solvers.load(name).check(likelihood, prior)  # type: ignore[attr-defined]
    except solvers.CapabilityError as error:
        _, use, rest = str(error).partition(" Use ")
        assert use or "give a" in str(error) or "has no length" in str(error), error
        return [word for word in re.findall(r"\w+", rest.partition(".")[0]) if word in CLASSES]
    return []


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_solver_that_a_refusal_names_takes_the_problem(operator, noise, differentiable):
    forward = OPERATORS[operator]
    y = torch.full(forward.out_shape, 0.5)
    likelihood = Likelihood(y, forward, NOISES[noise])
    prior = FunctionPrior(lambda x, sigma: x, name="any", differentiable=differentiable)
    named = {other for name in RESTORING for other in recommended(name, likelihood, prior)}
    for other in named:
        solvers.load(CLASSES[other]).check(likelihood, prior)  # type: ignore[attr-defined]
    if operator == "nonlinear":
        assert named >= ({"REDDiff"} if noise == "photons" else {"DAPS"})


@pytest.mark.parametrize("name", ["pnp_admm", "pigdm", "ddrm", "kps"])
def test_a_nonlinear_operator_is_refused_with_what_takes_it(name):
    likelihood = Likelihood(torch.full(SHAPE, 0.5), OPERATORS["nonlinear"], GaussianNoise(0.1))
    prior = FunctionPrior(lambda x, sigma: x, name="any", differentiable=True)
    with pytest.raises(solvers.CapabilityError, match=r"Use DAPS, (TDS or DPS|PnPDM or REDDiff)\.$"):
        solvers.load(name).check(likelihood, prior)  # type: ignore[attr-defined]
