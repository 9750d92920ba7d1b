"""Gibbs sampling of heavy-tailed increments as Gaussians whose variances are random.

The increments u_i of a walk x_k = u_1 + ... + u_k are independent, with

    Laplace(1):     u | v ~ N(0, v),  v exponential of mean 2;          1 / v | u ~ InverseGaussian(1 / |u|, 1)
    Student(nu):    u | v ~ N(0, v),  1 / v ~ Gamma(nu/2, rate nu/2);   1 / v | u ~ Gamma((nu + 1)/2, rate (nu + u^2)/2)

(Park and Casella 2008, "The Bayesian Lasso", section 2; Andrews and Mallows 1974). Given the variances and a linear
measurement with Gaussian noise x is Gaussian, so that sweeps alternate x | v, y and v | x. All chains, of all members,
move together, places first: (n, ...).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["NUMBERS", "BandedWalk", "Increments", "PinnedWalk", "Walk", "sweeps"]

# A normal number of each place for the Gaussian draw, and at most three for the variance.
NUMBERS = 4


@dataclass(frozen=True)
class Increments:
    """The law of independent increments: "laplace" with scale 1, or "student" with 2 degrees of freedom.

    Raises:
        ValueError: for another law.
    """

    law: str

    def __post_init__(self) -> None:
        if self.law not in ("laplace", "student"):
            raise ValueError(f"law is {self.law!r}: expected laplace or student.")

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density of each increment."""
        if self.law == "laplace":
            return -u.abs() - math.log(2)
        return -1.5 * torch.log1p(u**2 / 2) - 1.5 * math.log(2)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent increments, float64."""
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        e = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
        # 2 e is the variance of the Laplace law; e also is Gamma(1, 1), the precision of Student's with nu = 2.
        return normal * (2 * e).sqrt() if self.law == "laplace" else normal / e.sqrt()

    def variance_given(self, u: Tensor, normal: Tensor) -> Tensor:
        """A draw of v | u from three standard normals for each increment, (3, *u.shape)."""
        if self.law == "student":
            return (2 + u**2) / (normal**2).sum(0)
        # Michael, Schucany and Haas 1976, written without cancellation: the two roots are 1 / (|u| t) and t / |u|.
        size = u.abs().clamp_min(1e-12)
        r = normal[0] ** 2 / (2 * size)
        t = 1 + r + (r * (r + 2)).sqrt()
        larger = torch.special.ndtr(normal[1]) <= t / (1 + t)
        return size * torch.where(larger, t, 1 / t)


class _Factor(ABC):
    """The precision of x given v, factored as L D L^T for each chain."""

    @abstractmethod
    def solve(self, b: Tensor) -> Tensor:
        """(L D L^T)^-1 b for b of shape (n, ...)."""

    @abstractmethod
    def colour(self, normal: Tensor) -> Tensor:
        """L^-T D^-1/2 z: a draw of covariance (L D L^T)^-1 from standard normals of shape (n, ...)."""

    @abstractmethod
    def std(self) -> Tensor:
        """The standard deviation of each place, (n, ...)."""


class Walk(ABC):
    """x | v, y of a walk and a linear measurement with Gaussian noise: Gaussian, its precision factored in O(n)."""

    @abstractmethod
    def _factor(self, v: Tensor) -> _Factor: ...

    @abstractmethod
    def _pull(self, v: Tensor) -> Tensor:
        """A^T y / sigma^2 of each place, broadcast to v."""

    def moments(self, v: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of x | v, y and a draw of it, (n, ...) each, from as many standard normals."""
        factor = self._factor(v)
        mean = factor.solve(self._pull(v))
        return mean, mean + factor.colour(normal)

    def solve(self, v: Tensor, b: Tensor) -> Tensor:
        """Cov[x | v, y] b for b of shape (n, ...)."""
        return self._factor(v).solve(b)

    def std(self, v: Tensor) -> Tensor:
        """The standard deviation of each place given v, (n, ...)."""
        return self._factor(v).std()

    def mean_covariance(self, v: Tensor) -> Tensor:
        """The mean over chains of Cov[x | v, y], (n, n)."""
        factor = self._factor(v)
        columns = []
        for j in range(len(v)):
            unit = torch.zeros_like(v)
            unit[j] = 1.0
            columns.append(factor.solve(unit).mean(1))
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class PinnedWalk(Walk):
    """x | v, y where every measurement is of one place: the precision of x is tridiagonal.

    Args:
        weight: 1 / sigma^2 of each place, 0 where nothing is measured, (n, ...).
        pull: y / sigma^2 of each place, (n, ...).
    """

    weight: Tensor
    pull: Tensor

    def _pull(self, v: Tensor) -> Tensor:
        return self.pull

    def _factor(self, v: Tensor) -> _Factor:
        precision = 1 / v
        diagonal = precision + self.weight
        diagonal = torch.cat([diagonal[:-1] + precision[1:], diagonal[-1:]])
        pivots, slopes = [diagonal[0]], []
        for own, beside in zip(diagonal[1:], precision[1:], strict=True):
            slopes.append(beside / pivots[-1])
            pivots.append(own - slopes[-1] * beside)
        return _Tridiagonal(pivots, slopes)


@dataclass(frozen=True)
class _Tridiagonal(_Factor):
    """D, and minus the entries of L below its diagonal, place by place."""

    pivots: list[Tensor]
    slopes: list[Tensor]

    def solve(self, b: Tensor) -> Tensor:
        out = [b[0]]
        for value, slope in zip(b[1:], self.slopes, strict=True):
            out.append(value + slope * out[-1])
        return self._back([value / pivot for value, pivot in zip(out, self.pivots, strict=True)])

    def colour(self, normal: Tensor) -> Tensor:
        return self._back([z * pivot.rsqrt() for z, pivot in zip(normal, self.pivots, strict=True)])

    def std(self) -> Tensor:
        variance = [1 / self.pivots[-1]]
        for pivot, slope in zip(self.pivots[-2::-1], self.slopes[::-1], strict=True):
            variance.append(1 / pivot + slope**2 * variance[-1])
        return torch.stack(variance[::-1]).sqrt()

    def _back(self, b: list[Tensor]) -> Tensor:
        out = [b[-1]]
        for value, slope in zip(b[-2::-1], self.slopes[::-1], strict=True):
            out.append(value + slope * out[-1])
        return torch.stack(out[::-1])


@dataclass(frozen=True)
class BandedWalk(Walk):
    """x | v, y for a matrix A whose rows see only a few places next to each other, by a banded factor for each chain.

    Args:
        matrix: A, (m, n); the narrower the band of A^T A, the quicker.
        y: the measurement, (m,).
        sigma: its noise.
    """

    matrix: Tensor
    y: Tensor
    sigma: float

    @cached_property
    def _band(self) -> tuple[Tensor, int]:
        """A^T A / sigma^2 with as many zero rows and columns appended as its band is wide, and that width."""
        gram = self.matrix.T @ self.matrix / self.sigma**2
        places = torch.arange(len(gram))
        width = max(int((places[:, None] - places).abs()[gram != 0].max()), 1)
        return torch.nn.functional.pad(gram, (0, width, 0, width)), width

    def _pull(self, v: Tensor) -> Tensor:
        return (self.matrix.T @ self.y / self.sigma**2)[:, None].expand_as(v)

    def _factor(self, v: Tensor) -> _Factor:
        gram, width = self._band
        n, chains = v.shape
        precision = torch.cat([1 / v, v.new_ones(width, chains)])
        diagonal = precision.clone()
        diagonal[: n - 1] += precision[1:n]
        # Places beyond the last have precision 1 and touch nothing.
        precision[n:] = 0.0
        front = gram[: width + 1, : width + 1, None].repeat(1, 1, chains)
        for i in range(width + 1):
            front[i, i] += diagonal[i]
            if i:
                front[i, i - 1] -= precision[i]
                front[i - 1, i] -= precision[i]
        pivots, slopes = torch.empty_like(v), v.new_empty(n, width, chains)
        for i in range(n):
            pivots[i] = front[0, 0]
            slopes[i] = -front[1:, 0] / pivots[i]
            new = torch.zeros_like(front)
            new[:-1, :-1] = front[1:, 1:] + slopes[i][:, None] * front[0, 1:]
            j = i + width + 1
            if j < n + width:
                edge = gram[j, i + 1 : j, None].repeat(1, chains)
                edge[-1] -= precision[j]
                new[-1, :-1], new[:-1, -1] = edge, edge
                new[-1, -1] = gram[j, j] + diagonal[j]
            front = new
        return _Banded(pivots, slopes)


@dataclass(frozen=True)
class _Banded(_Factor):
    """D, (n, chains), and minus L below its diagonal, (n, width, chains)."""

    pivots: Tensor
    slopes: Tensor

    def solve(self, b: Tensor) -> Tensor:
        n, width, chains = self.slopes.shape
        out = torch.cat([b, b.new_zeros(width, chains)])
        for i in range(n):
            out[i + 1 : i + 1 + width] += self.slopes[i] * out[i]
        return self._back(out[:n] / self.pivots)

    def colour(self, normal: Tensor) -> Tensor:
        return self._back(normal * self.pivots.rsqrt())

    def std(self) -> Tensor:
        width, chains = self.slopes.shape[1:]
        after = torch.zeros(width, width, chains, dtype=self.pivots.dtype)
        variance = []
        # Entries of the inverse inside the band, from the last place up (Erisman and Tinney 1975).
        for pivot, slope in zip(self.pivots.flip(0), self.slopes.flip(0), strict=True):
            cross = torch.einsum("abc,bc->ac", after, slope)
            variance.append(1 / pivot + (slope * cross).sum(0))
            beside = torch.cat([variance[-1][None], cross[:-1]])
            after = torch.cat([beside[None], torch.cat([cross[:-1, None], after[:-1, :-1]], 1)])
        return torch.stack(variance[::-1]).sqrt()

    def _back(self, b: Tensor) -> Tensor:
        n, width, chains = self.slopes.shape
        out = torch.cat([b, b.new_zeros(width, chains)])
        for i in range(n - 1, -1, -1):
            out[i] += (self.slopes[i] * out[i + 1 : i + 1 + width]).sum(0)
        return out[:n]


def sweeps(
    law: Increments,
    walk: Walk,
    v: Tensor,
    numbers: Callable[[int], Tensor],
    count: int,
    keep: Callable[[int, Tensor, Tensor, Tensor], None],
) -> None:
    """Alternate x | v, y and v | x, `count` times, telling `keep` the sweep, v, the mean given v and the draw x.

    Args:
        law: of the increments.
        walk: the measurement.
        v: where the chains start, (n, ...).
        numbers: sweep -> standard normals, (NUMBERS, n, ...).
        count: number of sweeps.
        keep: called once a sweep.
    """
    for index in range(count):
        normal = numbers(index)
        mean, x = walk.moments(v, normal[0])
        keep(index, v, mean, x)
        u = torch.diff(x, dim=0, prepend=torch.zeros_like(x[:1]))
        v = law.variance_given(u, normal[1:]).clamp(1e-12, 1e12)
