"""Clouds of weighted particles: weights, resampling, and likelihoods and denoisers for all particles at once.

A cloud is n particles x_i with weights w_i that stand for one distribution, sum_i w_i delta(x_i). Everything here takes
b clouds at once, values (b, n, ...) and log-weights (b, n), and works along the particles alone: a cloud never depends
on the others, and its chances come from its own stream. Log-weights need no normalisation, and are kept in float64.

A cloud with a log-weight that is NaN or inf, or none above -inf, has failed: its weights are NaN, its ancestors -1, and
what is gathered from them is NaN, so that the others go on and the draw is marked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .likelihood import Likelihood
from .priors.base import Prior
from .random import MemberRandom

__all__ = [
    "RESAMPLING",
    "denoise",
    "effective_size",
    "gather",
    "likelihood_of_particles",
    "multinomial",
    "normalise",
    "resample",
    "shuffled",
    "systematic",
]

RESAMPLING = ("systematic", "multinomial")


def normalise(log_weights: Tensor) -> Tensor:
    """The weights of every cloud, (b, n) float64, of sum 1 along the particles; NaN in one that failed.

    >>> normalise(torch.tensor([[0.0, 0.0], [-1e4, float("-inf")], [0.0, float("nan")]])).tolist()
    [[0.5, 0.5], [1.0, 0.0], [nan, nan]]
    """
    return log_weights.double().softmax(1)


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / sum_i w_i^2 of every cloud, (b,): from 1, one particle has all the weight, to n, all have the same.

    Kong, Liu, Wong 1994, "Sequential Imputations and Bayesian Missing Data Problems".
    """
    return 1 / normalise(log_weights).square().sum(1)


def systematic(log_weights: Tensor, random: MemberRandom) -> Tensor:
    """Ancestors (b, n) by one uniform number a cloud: particle i has floor(n w_i) or one more children.

    Kitagawa 1996, "Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models".
    """
    n = log_weights.shape[1]
    offset = random.uniform(log_weights.new_empty(log_weights.shape[0], 1, dtype=torch.float64))
    steps = torch.arange(n, dtype=torch.float64, device=log_weights.device)
    return _inverse(log_weights, (steps + offset) / n)


def multinomial(log_weights: Tensor, random: MemberRandom) -> Tensor:
    """Ancestors (b, n), each drawn by weight and independent of the others."""
    return _inverse(log_weights, random.uniform(log_weights.new_empty(log_weights.shape, dtype=torch.float64)))


def resample(log_weights: Tensor, random: MemberRandom, kind: str = "systematic") -> Tensor:
    """Ancestors (b, n) by the rule of that name, one of RESAMPLING.

    Raises:
        ValueError: for an unknown rule.
    """
    if kind == "systematic":
        return systematic(log_weights, random)
    if kind == "multinomial":
        return multinomial(log_weights, random)
    raise ValueError(f"resampling is {kind!r}: expected one of {', '.join(RESAMPLING)}.")


def gather(values: Tensor, ancestors: Tensor) -> Tensor:
    """The values (b, n, ...) of the ancestors (b, m) of every cloud, (b, m, ...); NaN where there is none (-1)."""
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    found, lost = values[rows, ancestors], ancestors < 0
    return found.masked_fill(lost.reshape(*lost.shape, *(1,) * (values.ndim - 2)), torch.nan) if lost.any() else found


def shuffled(x: Tensor, log_weights: Tensor, random: MemberRandom) -> Tensor:
    """The cloud as n draws of equal weight in an order that says nothing: siblings do not stand side by side.

    Any of them alone is a particle drawn by weight.
    """
    chosen = gather(x, systematic(log_weights, random))
    order = random.uniform(log_weights.new_empty(log_weights.shape, dtype=torch.float64)).argsort(dim=1, stable=True)
    return gather(chosen, order)


def denoise(denoiser: Prior, x: Tensor, sigma: float) -> Tensor:
    """D(x, sigma) of all particles in one call, (b, n, *in_shape) -> the same shape."""
    return denoiser(x.flatten(0, 1), sigma).reshape(x.shape)


def likelihood_of_particles(likelihood: Likelihood, particles: int) -> Likelihood:
    """The likelihood that goes with x.flatten(0, 1): the measurement of every cloud, once for each of its particles."""
    if likelihood.measurements == 1 and likelihood.operator.batch is None:
        return likelihood
    return likelihood.take(torch.arange(likelihood.measurements).repeat_interleave(particles))


def _inverse(log_weights: Tensor, heights: Tensor) -> Tensor:
    """The first particle at which the summed weights pass each height in [0, 1), (b, m); -1 in a cloud that failed."""
    weights = normalise(log_weights)
    bounds = weights.cumsum(1)
    # Divided by the last sum, which is 1 up to rounding, so that no height lies above it; and a particle of weight 0
    # at the end is never reached.
    found = torch.searchsorted(bounds / bounds[:, -1:], heights, right=True).clamp_max(log_weights.shape[1] - 1)
    return torch.where(weights.isnan().any(1, keepdim=True), -1, found)
