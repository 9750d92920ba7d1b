"""Mixtures of Gaussians seen through few directions: the posterior is a mixture whose weights a sampler must find.

Two published set-ups, both with posteriors in closed form (`invdiff.priors.mixtures`):

    mixture25   25 modes on a grid, in 8 to 800 dimensions, of which 1, 2 or 4 are measured: Cardoso, Janati El Idrissi,
                Le Corff, Moulines 2024, "Monte Carlo guided Denoising Diffusion models for Bayesian linear inverse
                problems"
    mixture16   two modes in 2 of 16 dimensions, measured or not: arXiv 2602.04189
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import Matrix
from ..priors import GaussianMixturePrior
from .problem import Problem, next_seed, normal, stream

__all__ = ["mixture16_prior", "mixture16_problems", "mixture25_problems"]

CELLS = tuple((d, d_y) for d in (8, 80, 800) for d_y in (1, 2, 4))
# Where sampling starts, in units of the largest distance between two modes.
REACH = 2.0

TRUTH16 = (3, 2, 0.5, -0.5, 1, 0.8, -0.6, 1.1, -0.9, 0.4, 0, -1.2, 0.7, -0.3, 0.5, -0.8)


def mixture25_problems(problems: int = 20) -> Iterator[Problem]:
    """`problems` problems for each d in 8, 80, 800 and d_y in 1, 2, 4, named "mixture25/d=8 dy=1/0".

    Components N(m, I) with m = (-8i, -8j) repeated d / 2 times, i and j from -2 to 2, and weights that are the
    normalised squares of standard normals. A = U diag(s) V^T has the singular vectors of a standard normal matrix and
    sorted uniforms on (0, 1) as singular values; sigma_y is uniform on (0, max s); y is of a draw of the prior.
    """
    grid = torch.tensor([[-8.0 * i, -8.0 * j] for i in range(-2, 3) for j in range(-2, 3)], dtype=torch.float64)
    for d, d_y in CELLS:
        means = grid.repeat(1, d // 2)
        for number in range(problems):
            generator = stream(2, d, d_y, number)
            weights = normal((25,), generator) ** 2
            prior = GaussianMixturePrior(weights, means, torch.ones(25))
            u, _, vt = torch.linalg.svd(normal((d_y, d), generator), full_matrices=False)
            s = torch.rand(d_y, generator=generator, dtype=torch.float64).sort(descending=True).values
            sigma = float(torch.rand((), generator=generator, dtype=torch.float64) * s[0])
            operator = Matrix((u * s) @ vt)
            truth = prior.sample(1, seed=next_seed(generator))[0]
            y = operator.forward(truth[None])[0] + sigma * normal((d_y,), generator)
            likelihood = Likelihood(y, operator, GaussianNoise(sigma))
            yield Problem(
                name=f"mixture25/d={d} dy={d_y}/{number}",
                family="mixture25",
                prior=prior,
                likelihood=likelihood,
                truth=truth,
                posterior=prior.posterior(likelihood),
                sigma_max=REACH * 32 * math.sqrt(d),
            )


def mixture16_prior() -> GaussianMixturePrior:
    """(x1, x2) ~ 0.8 N((0, 0), I) + 0.2 N((3, 3), 2 I), and x3 to x16 standard normal."""
    means = torch.zeros(2, 16, dtype=torch.float64)
    means[1, :2] = 3.0
    variances = torch.ones(2, 16, dtype=torch.float64)
    variances[1, :2] = 2.0
    return GaussianMixturePrior(torch.tensor([0.8, 0.2], dtype=torch.float64), means, torch.diag_embed(variances))


def mixture16_operators() -> dict[str, Matrix]:
    """A1 measures x3 to x16 with gains 0.10 to 0.75 and leaves the two modes to the prior; A2 measures 3 x1 to 3 x4."""
    first = torch.zeros(14, 16, dtype=torch.float64)
    for i in range(14):
        first[i, i + 2] = 0.10 + 0.05 * i
    return {"A1": Matrix(first), "A2": Matrix(3.0 * torch.eye(4, 16, dtype=torch.float64))}


def mixture16_problems(problems: int = 5) -> Iterator[Problem]:
    """`problems` draws of the noise for A1 and A2 and sigma_y 0.2 and 0.5, named "mixture16/A1 0.2/0"."""
    prior = mixture16_prior()
    truth = torch.tensor(TRUTH16, dtype=torch.float64)
    for i, (name, operator) in enumerate(mixture16_operators().items()):
        z = operator.forward(truth[None])[0]
        for j, sigma in enumerate((0.2, 0.5)):
            for number in range(problems):
                y = z + sigma * normal(z.shape, stream(3, i, j, number))
                likelihood = Likelihood(y, operator, GaussianNoise(sigma))
                yield Problem(
                    name=f"mixture16/{name} {sigma:g}/{number}",
                    family="mixture16",
                    prior=prior,
                    likelihood=likelihood,
                    truth=truth,
                    posterior=prior.posterior(likelihood),
                    sigma_max=40.0,
                )
