"""What a set of draws says, held against the exact posterior: coverage, mode weights, residual, and what A sees of it.

Every figure is a mean over draws, so that draws of a batch may be added in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator, Operator, Spectral
from ..posterior import Posterior
from ..priors.mixtures import dense_matrix
from .problem import ExactPosterior, Problem

__all__ = [
    "coverage",
    "density_coverage",
    "residual_chi2",
    "row_space",
    "stein_discrepancy",
    "total_variation",
]


def row_space(operator: Operator) -> Callable[[Tensor], Tensor]:
    """The projection of (b, *in_shape) onto what A sees; the identity where A is not linear.

    Directions whose singular value is below 1e-6 of the largest count as not seen. An operator without an SVD gets one
    of its dense matrix.
    """
    if not isinstance(operator, LinearOperator):
        return lambda x: x
    if isinstance(operator, Spectral):
        spectral = operator

        def project(x: Tensor) -> Tensor:
            z = spectral.vt(x)
            return spectral.v(z * (spectral.inverse_singular(z, rcond=1e-6) > 0))

        return project
    rows = _rows(operator)
    if rows is None:
        return lambda x: x
    return lambda x: (x.flatten(1) @ rows.to(x) @ rows.to(x).T).reshape(x.shape)


# The last operator's is kept, as problems of one cell come one after the other.
@lru_cache(maxsize=1)
def _rows(operator: LinearOperator) -> Tensor | None:
    """Orthonormal directions that A sees, a column each, by the eigenvectors of A^T A; None where it sees all."""
    matrix = dense_matrix(operator, torch.zeros((), dtype=torch.float64))
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    seen = values > 1e-12 * values[-1]
    return None if bool(seen.all()) else vectors[:, seen]


def observed_variance(covariance: Tensor, operator: Operator) -> float:
    """The part of the trace of a covariance, (n, n), that lies in the row space of A."""
    project = row_space(operator)
    return float(project(covariance.reshape(-1, *operator.in_shape)).reshape(covariance.shape).trace())


def coverage(draws: Tensor, posterior: ExactPosterior, level: float = 0.9) -> float:
    """The exact probability of the central interval of the draws, averaged over values; `level` where they are right.

    Args:
        draws: (n, *shape), at least 2 / (1 - level) - 1 of them.
        posterior: the exact posterior.
        level: nominal coverage.

    Raises:
        ValueError: for too few draws.
    """
    return float(posterior.probability(*Posterior(draws.double(), {}).interval(level)).mean())


def density_coverage(draws: Tensor, problem: Problem, level: float = 0.9, exact: int = 2000, seed: int = 0) -> float:
    """The exact probability of the region where the density is above the (1 - level) quantile of it over the draws.

    For exact draws this is the highest-density region of that level. Draws that are too narrow stand where the density
    is high, and their region holds little.

    Args:
        draws: (n, *shape).
        problem: the problem that they answer.
        level: nominal coverage.
        exact: number of exact draws by which the probability is measured.
        seed: of those.
    """
    least = problem.log_density(draws).quantile(1 - level)
    return float((problem.log_density(problem.posterior.sample(exact, seed)) >= least).double().mean())


def total_variation(draws: Tensor, posterior: ExactPosterior) -> float:
    """Half the sum of the differences between the weights of the modes in the draws and in the posterior.

    A draw counts for each mode by the mode's probability at that place, so that modes may overlap.

    Raises:
        ValueError: if the posterior is no mixture.
    """
    weights = getattr(posterior, "weights", None)
    if weights is None:
        raise ValueError(f"{type(posterior).__name__} has no modes: expected the posterior of a mixture.")
    shares = posterior.responsibilities(draws.double()).mean(0)  # type: ignore[attr-defined]
    return 0.5 * float((shares - weights).abs().sum())


def residual_chi2(draws: Tensor, likelihood: Likelihood) -> float:
    """The mean over draws and measured values of (y - A x)^2 / sigma_y^2; exact draws have their own, often near 1.

    Raises:
        ValueError: if the noise is not Gaussian.
    """
    if not isinstance(likelihood.noise, GaussianNoise):
        raise ValueError(f"The residual's chi^2 is of GaussianNoise: this is {type(likelihood.noise).__name__}.")
    residual = likelihood.to(dtype=torch.float64).residual(draws.double())
    return float((residual / likelihood.noise.like(residual[:1])).square().mean())


def stein_discrepancy(draws: Tensor, problem: Problem) -> float:
    """The kernel Stein discrepancy of the draws with the inverse multiquadric kernel (1 + |x - x'|^2)^(-1/2).

    The square root of the mean over all pairs of

        s(x).s(x') k + s(x).grad' k + s(x').grad k + div grad' k,    s = grad log p(x | y)

    Gorham and Mackey 2017, "Measuring Sample Quality with Kernels". It looks at scores alone, hardly sees the
    weights of modes far apart, and exact draws can lose to biased ones by it: no verdict rests on it.

    Args:
        draws: (n, *shape).
        problem: the problem that they answer; its density must be differentiable.
    """
    with torch.enable_grad():
        leaf = draws.double().detach().requires_grad_(True)
        (score,) = torch.autograd.grad(problem.log_density(leaf).sum(), leaf)
    x, s = leaf.detach().flatten(1), score.flatten(1)
    d = x.shape[1]
    squared = torch.cdist(x, x) ** 2
    base = 1 + squared
    # (s - s').(x - x') of all pairs from products of pairs.
    sx = s @ x.T
    own = (s * x).sum(1)
    slope = own[:, None] + own - sx - sx.T
    kernel = base**-0.5
    pairs = (s @ s.T) * kernel + slope * base**-1.5 + d * base**-1.5 - 3 * squared * base**-2.5
    return float(pairs.mean().clamp_min(0).sqrt())
