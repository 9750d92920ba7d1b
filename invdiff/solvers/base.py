"""What solvers share: the protocol, the checks before the first step, and where they start."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator, Spectral
from ..operators.checks import spectral_norm
from ..operators.linalg import column
from ..priors.base import Prior
from ..random import MemberRandom
from ..schedule import noise_levels

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["CapabilityError", "DiffusionSolver", "Margins", "PointSolver", "Solver", "column"]

# Pixel values vary by about a quarter around the middle of the range: the prior of somebody who knows nothing else.
PIXEL_STD = 0.25


class CapabilityError(ValueError):
    """A solver, an operator, a noise and a prior that do not go together, found before the first step."""


@dataclass(frozen=True)
class Margins:
    """What a solver promises of its draws where the denoiser is exact and the prior Gaussian; a test holds it to them.

    Args:
        mean: largest error of the mean, in posterior stds.
        spread: smallest and largest ratio of the draws' std to the posterior's.
        coverage: smallest and largest true coverage of the nominal 90 % interval.
    """

    mean: float
    spread: tuple[float, float]
    coverage: tuple[float, float]


@runtime_checkable
class Solver(Protocol):
    """Hyper-parameters plus one generator of iterates; the last iterate is the result."""

    if TYPE_CHECKING:
        # Read only for type checkers, so that a class that says it once for all of its instances is a solver for them.
        # At run time a property would be in the way of classes that inherit from this one and set it.
        @property
        def stochastic(self) -> bool:
            """Whether two seeds give two results."""
            ...
    else:
        stochastic: bool

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        """Yield one iterate (b, *in_shape) per step, starting from x.

        A run without a measurement passes None as the likelihood: a solver whose `check` lets that through, as that of
        a `PriorSampler` does, must take it.
        """
        ...


def require_count(solver: object, *names: str, least: int = 1) -> None:
    """Refuse settings that are not whole numbers from `least` on."""
    for name in names:
        value = getattr(solver, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            kind = type(solver).__name__
            raise ValueError(f"{name} of {kind} is {value!r}: expected a whole number from {least} on.")


def require_positive(solver: DataclassInstance, *names: str) -> None:
    """Refuse settings that are not finite and positive; None stands for left out where the field's type has it."""
    optional = {f.name for f in fields(solver) if any(word in str(f.type) for word in ("None", "Optional"))}
    for name in names:
        value = getattr(solver, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} of {type(solver).__name__} is {value!r}: expected a number.")
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} of {type(solver).__name__} is {value}: expected a finite number above 0.")


@dataclass(frozen=True)
class PointSolver:
    """Solvers that descend to one image; `iterations` steps with a denoiser strength that falls log-linearly.

    Args:
        iterations: number of steps.
        sigma_start: denoiser strength of the first step, image units; at most the highest of the prior's range.
        sigma_end: denoiser strength of the last step; the noise level of the measurement where left out, and at least
            1/255. Equal to sigma_start it makes the method the textbook one, with one denoiser throughout.
        lam: weight of the prior.
    """

    iterations: int = 50
    sigma_start: float = 0.5
    sigma_end: float | None = None
    lam: float = 0.23

    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        counts = [f.name for f in fields(self) if f.type == "int"]
        require_count(self, *counts)
        require_positive(self, *(f.name for f in fields(self) if f.type in ("float", "float | None")))

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        likelihood = require_likelihood(self, likelihood)
        if not isinstance(likelihood.operator, LinearOperator):
            kind = type(likelihood.operator).__name__
            raise CapabilityError(
                f"{type(self).__name__} needs a linear operator; {kind} is not one. {instead(likelihood, denoiser)}"
            )

    def start(self, likelihood: Likelihood, denoiser: Prior, like: Tensor, random: MemberRandom) -> Tensor:
        """The regularised inverse of y: what the measurement says with independent pixels as the prior."""
        return likelihood.prox(torch.full_like(like, 0.5), PIXEL_STD**-2)

    def strengths(self, likelihood: Likelihood, denoiser: Prior, like: Tensor) -> list[Tensor]:
        """The denoiser strength of every step, (b,) as each measurement has its own noise, inside the prior's range."""
        low, high = denoiser.sigma_range
        # Cut before the levels are spaced: a denoiser of limited range gets a schedule, not a plateau at its limit.
        start = min(self.sigma_start, high)
        if self.sigma_end is None:
            end = noise_level(likelihood).clamp(min(1 / 255, start), start)
        else:
            end = torch.tensor([self.sigma_end], dtype=torch.float64)
        # From 1 to 0; one step alone takes the last strength.
        share = torch.linspace(0, 1, self.iterations, dtype=torch.float64).flip(0)[:, None]
        levels = (math.log(start) * share + end.log() * (1 - share)).exp().clamp(low, high)
        return list(levels.to(like).expand(-1, like.shape[0]))


def require_likelihood(solver: object, likelihood: Likelihood | None) -> Likelihood:
    """The likelihood; refuse to draw from the prior alone."""
    if likelihood is None:
        raise CapabilityError(
            f"{type(solver).__name__} needs a likelihood: to draw from the prior alone use DDPM or Heun."
        )
    return likelihood


def instead(likelihood: Likelihood, denoiser: Prior | None = None) -> str:
    """The end of a refusal: which solvers take this operator with this noise, and any prior or the one given."""
    linear, gaussian = isinstance(likelihood.operator, LinearOperator), isinstance(likelihood.noise, GaussianNoise)
    if linear:
        return "Use KPS, DiffPIR or PnPADMM." if gaussian else "Use DiffPIR, PnPADMM or REDFP."
    if not gaussian:
        return "Use REDDiff."
    return "Use DAPS, PnPDM or REDDiff." if denoiser is None or not denoiser.differentiable else "Use DAPS, TDS or DPS."


def require_svd(solver: object, likelihood: Likelihood) -> None:
    """Refuse an operator without an SVD, and noise that is not Gaussian with one sigma per measurement."""
    name, operator, noise = type(solver).__name__, likelihood.operator, likelihood.noise
    if not isinstance(operator, Spectral):
        raise CapabilityError(
            f"{name} needs an operator with an SVD; {type(operator).__name__} has none. {instead(likelihood)}"
        )
    if not isinstance(noise, GaussianNoise) or noise.member_sigma(likelihood.batched_y) is None:
        gaussian = isinstance(noise, GaussianNoise)
        raise CapabilityError(
            f"{name} needs GaussianNoise with one sigma per measurement; this one has "
            f"{'a sigma per pixel' if gaussian else type(noise).__name__}. "
            f"{instead(likelihood)}"
        )


class SingularCoordinates:
    """The measurement in the singular coordinates of its operator.

    Args:
        likelihood: one that `require_svd` lets pass.
        like: a tensor of the dtype and device to work in.

    Attributes:
        operator: A, with u, v, ut and vt.
        seen: where s > 0, broadcastable against coordinates.
        ybar: u^T y / s, 0 where s = 0.
        noise: the standard deviation sigma_y / s of ybar, inf where s = 0.
    """

    def __init__(self, likelihood: Likelihood, like: Tensor) -> None:
        assert isinstance(likelihood.operator, Spectral)
        assert isinstance(likelihood.noise, GaussianNoise)
        self.operator = likelihood.operator
        y = likelihood.batched_y.to(like)
        coordinates = self.operator.ut(y)
        inverse = self.operator.inverse_singular(coordinates)
        sigma = likelihood.noise.like(y).reshape(-1, *(1,) * (coordinates.ndim - 1))
        self.ybar = inverse * coordinates
        if inverse.ndim > 2 and bool((inverse == inverse[..., :1, :, :]).all()):
            # What all channels share is computed once.
            inverse = inverse[..., :1, :, :]
        self.seen = inverse > 0
        self.noise = torch.where(self.seen, sigma * inverse, torch.inf)


def noise_level(likelihood: Likelihood) -> Tensor:
    """The noise of each measurement in image units, (m,): the mean sigma, or for photons the mean of sqrt(gain y)."""
    if isinstance(likelihood.noise, GaussianNoise):
        shape = torch.empty((), dtype=torch.float64).expand(likelihood.batched_y.shape)
        return likelihood.noise.like(shape).flatten(1).mean(1)
    y = likelihood.batched_y.double().cpu()
    gain = getattr(likelihood.noise, "gain", 0.0)
    return (gain * y.clamp_min(0)).sqrt().flatten(1).mean(1)


def lipschitz(likelihood: Likelihood) -> Tensor:
    """The curvature |A|^2 / min sigma^2 of -log p(y | x) per measurement, (1 or m,).

    |A| is exact where there is an SVD; elsewhere a power iteration bounds it from below and 1 % is added.

    Raises:
        CapabilityError: for Poisson noise or sigma = 0, where there is no bound.
    """
    operator, noise = likelihood.operator, likelihood.noise
    if not isinstance(noise, GaussianNoise):
        raise CapabilityError(
            f"A gradient step needs Gaussian noise to know its length; this is {type(noise).__name__}. "
            "Use PnPADMM, PnPHQS, REDFP or REDADMM."
        )
    y = likelihood.batched_y
    sigma = noise.like(y).flatten(1).min(1).values
    if bool((sigma == 0).any()):
        raise CapabilityError(
            "sigma_y is 0, where a gradient step has no length: use PnPADMM, PnPHQS, REDFP or REDADMM, which project."
        )
    assert isinstance(operator, LinearOperator)
    if isinstance(operator, Spectral):
        norm = operator.largest(operator.ut(y)).flatten()
    else:
        members = range(operator.batch or 1)
        norm = 1.01 * torch.tensor([spectral_norm(operator.take(torch.tensor([j]))) for j in members])
    return (norm.to(sigma) / sigma) ** 2


@dataclass(frozen=True)
class DiffusionSolver:
    """Solvers that follow the noise down from sigma_max to 0.

    Args:
        steps: number of denoiser calls.
        schedule: spacing of the noise levels, "vp" (even in the time of the linear-beta process) or "karras".
        sigma_min: last noise level before 0, image units.
        sigma_max: first noise level; where left out the highest of the prior's range, and at most 40.
    """

    steps: int = 100
    schedule: str = "vp"
    sigma_min: float = 0.005
    sigma_max: float | None = None

    stochastic: ClassVar[bool] = True
    margins: ClassVar[Margins | None] = None
    # A prior that does not reach this noise level has not forgotten the image where the solver starts.
    full_range: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        require_count(self, "steps", least=2)
        require_positive(self, "sigma_min", "sigma_max")
        noise_levels(self.schedule, self.steps, self.sigma_min, self.sigma_max or 40.0)

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        name, (low, high) = type(self).__name__, denoiser.sigma_range
        if likelihood is None and low > 0.05:
            raise self._too_narrow(denoiser)
        if low > 0.05 or high <= self.sigma_min:
            raise CapabilityError(
                f"{name} needs a prior for noise levels down to {self.sigma_min:g}; {denoiser.name} serves "
                f"{low:.3g} to {high:.3g}. Use PnPPGD, PnPADMM or REDGD with sigma_start = sigma_end in its range."
            )
        if low >= high:
            raise CapabilityError(
                f"{name} needs a prior for a range of noise levels; {denoiser.name} serves {low:.3g} only. "
                "Use PnPPGD, PnPADMM or REDGD."
            )
        if self.sigma_max is not None and self.sigma_max > high:
            raise CapabilityError(
                f"{name} is to start at sigma {self.sigma_max:g}; {denoiser.name} serves at most {high:.3g}. "
                "Start there or lower, or leave sigma_max out."
            )

    def check_noise_start(self, denoiser: Prior) -> None:
        """Refuse to draw from noise alone with a prior that does not reach it; from an image it may go on."""
        if self.heuristic(denoiser):
            raise self._too_narrow(denoiser)

    def _too_narrow(self, denoiser: Prior) -> CapabilityError:
        low, high = denoiser.sigma_range
        return CapabilityError(
            f"{type(self).__name__} cannot draw from the prior alone with {denoiser.name}, which serves noise levels "
            f"from {low:.3g} to {high:.3g} only. Use a diffusion prior (natural)."
        )

    def heuristic(self, denoiser: Prior) -> bool:
        """Whether the prior's range ends where images have not been forgotten, so that the start is a guess."""
        return denoiser.sigma_range[1] < self.full_range

    def levels(self, denoiser: Prior) -> list[float]:
        """The noise levels from the first to 0."""
        low, high = denoiser.sigma_range
        first = self.sigma_max if self.sigma_max is not None else min(high, 40.0)
        return noise_levels(self.schedule, self.steps, max(self.sigma_min, low), first)

    def start(self, likelihood: Likelihood | None, denoiser: Prior, like: Tensor, random: MemberRandom) -> Tensor:
        """0.5 + sigma_max * eps; for a prior of limited range the regularised inverse of y instead of 0.5."""
        return self.centre(likelihood, denoiser, like) + self.levels(denoiser)[0] * random.normal(like)

    def centre(self, likelihood: Likelihood | None, denoiser: Prior, like: Tensor) -> Tensor:
        """What the noise is added to at the start, in the shape of like, (b, *in_shape)."""
        centre = torch.full_like(like, 0.5)
        if likelihood is not None and self.heuristic(denoiser) and isinstance(likelihood.operator, LinearOperator):
            return likelihood.prox(centre, PIXEL_STD**-2)
        return centre
