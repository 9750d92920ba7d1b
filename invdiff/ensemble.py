"""What an ensemble is made of, and how one micro-batch of it is computed, wherever that happens.

The members of an ensemble stand on a grid, draws by measurements, and a micro-batch is one rectangle of it, whose size
follows from the shape of the images and the number of measurements alone. Every draw has its own random stream. So a
draw is the same in one process, after a restart, or on another worker of the same kind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .callables import opaque_in
from .likelihood import Likelihood
from .posterior import DEPENDENT, POINT
from .priors.base import Prior
from .random import MemberRandom
from .record import describe, machine
from .solvers.base import DiffusionSolver, Solver

__all__ = ["SCHEME", "Block", "Ensemble", "Outcome"]

# Counts up whenever the same settings give other draws than before: other streams, another order of members.
SCHEME = 2


@dataclass(frozen=True)
class Block:
    """One micro-batch, by its first cloud (its first draw, where a cloud gives one) and its first measurement."""

    first_cloud: int
    first_measurement: int


@dataclass(frozen=True)
class Outcome:
    """What one micro-batch gave.

    Args:
        draws: (clouds * kept, measurements, *in_shape); not a number throughout in draws that failed.
        failed: the step at which each draw first was not finite, 0 for those that are fine, (clouds * kept,
            measurements).
        nfe, nfe_backward: network evaluations that one draw costs, and passes back.
    """

    draws: Tensor
    failed: Tensor
    nfe: int
    nfe_backward: int


@dataclass(frozen=True)
class Ensemble:
    """Everything that decides what draw k of measurement j is.

    Args:
        solver, likelihood, prior: as in `sample`, checked and on their device.
        seed: from 0 on.
        shape: of one image.
        size: most members of a micro-batch.
        dtype, device: of the iterates.
        start: images to start from, (1 or m, *shape), or None.
        start_sigma: noise level added to them.
        threads: of the CPU that computes; those of this process if left out.
    """

    solver: Solver
    likelihood: Likelihood | None
    prior: Prior
    seed: int
    shape: tuple[int, ...]
    size: int
    dtype: torch.dtype
    device: torch.device
    start: Tensor | None = None
    start_sigma: float | None = None
    threads: int | None = None

    @property
    def measurements(self) -> int:
        """The number m of measurements; 1 without a likelihood."""
        return 1 if self.likelihood is None else self.likelihood.measurements

    @property
    def batched(self) -> bool:
        """Whether draws have a measurement axis."""
        return self.likelihood is not None and self.likelihood.batched

    @property
    def cloud(self) -> int | None:
        """The number of particles of a cloud; None where the solver has no clouds."""
        return getattr(self.solver, "particles", None)

    @property
    def kept(self) -> int:
        """The number of draws that one cloud gives: 1, or all of its particles."""
        return self.cloud if self.cloud is not None and self.dependent else 1

    @property
    def dependent(self) -> bool:
        """Whether draws share clouds."""
        return self.cloud is not None and getattr(self.solver, "keep", "one") == "cloud"

    @property
    def grid(self) -> tuple[int, int]:
        """(clouds, measurements) of a micro-batch: all measurements side by side where they fit, evenly split else."""
        parts = math.ceil(self.measurements / self.size)
        across = math.ceil(self.measurements / parts)
        return (self.size // across if self.solver.stochastic else 1), across

    @property
    def label(self) -> str:
        """What the spread of the draws is; see `Posterior`."""
        if not self.solver.stochastic:
            return POINT
        guessed = self.likelihood is not None or self.start is None
        heuristic = guessed and isinstance(self.solver, DiffusionSolver) and self.solver.heuristic(self.prior)
        label = "heuristic spread" if heuristic else "uncalibrated spread"
        return f"{label} {DEPENDENT}" if self.dependent else label

    def blocks(self, draws: int) -> list[Block]:
        """The micro-batches that hold so many draws of every measurement; the last ones may hold more."""
        down, across = self.grid
        clouds = math.ceil(draws / self.kept)
        firsts = itertools.product(range(0, clouds, down), range(0, self.measurements, across))
        return [Block(*first) for first in firsts]

    def place(self, block: Block, draws: int) -> tuple[slice, slice]:
        """The draws, up to so many, and the measurements that a micro-batch holds."""
        down, across = self.grid
        first, j = block.first_cloud * self.kept, block.first_measurement
        return slice(first, min(first + down * self.kept, draws)), slice(j, min(j + across, self.measurements))

    def settings(self) -> dict[str, Any]:
        """What must be the same for draws to be the same, as JSON can hold it."""
        likelihood = self.likelihood
        return {
            "solver": describe(self.solver),
            "prior": describe(self.prior),
            "operator": None if likelihood is None else describe(likelihood.operator),
            "noise": None if likelihood is None else describe(likelihood.noise),
            "y": None if likelihood is None else describe(likelihood.y),
            "seed": self.seed,
            "measurements": self.measurements,
            "micro_batch": self.size,
            "in_shape": list(self.shape),
            "start": None if self.start is None else describe(self.start[0] if len(self.start) == 1 else self.start),
            "start_sigma": describe(self.start_sigma),
            "dtype": describe(self.dtype),
            "cloud": self.cloud,
            "dependent": self.dependent,
            "scheme": SCHEME,
            "machine": machine(self.device, self.threads),
        }

    @property
    def opaque(self) -> str | None:
        """What of the settings cannot be described, by name, so that other draws may go by the same ones."""
        return opaque_in(self.settings())

    def run(
        self,
        block: Block,
        advance: Callable[[int], None] = lambda step: None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Outcome:
        """Compute one micro-batch; its last members are computed and dropped where the measurements do not fill it.

        Args:
            block: which one.
            advance: called with the number of every step.
            on_step: as in `sample`.

        Raises:
            TypeError, ValueError: for a solver that yields nothing, or what are no tensors of the right shape.
        """
        down, across = self.grid
        count, cloud, kept, shape = self.measurements, self.cloud, self.kept, self.shape
        columns = [(block.first_measurement + k) % count for k in range(across)]
        members = [(block.first_cloud + k, j) for k in range(down) for j in columns]
        size = len(members)
        random = MemberRandom(self.seed, members)
        chunk, prior = _take(self.likelihood, members, count), Counted(self.prior)
        inside = shape if cloud is None else (cloud, *shape)
        like = torch.empty(size, *inside, dtype=self.dtype, device=self.device)
        failed = torch.zeros(size * kept, dtype=torch.int32, device=self.device)
        with threads_of(self.threads), torch.no_grad():
            x = self._first(chunk, prior, like, members, random)
            # Without a likelihood: the solver's check has let that through.
            iterates = self.solver.iterate(chunk, prior, x, random)  # type: ignore[arg-type]
            expected = (size, kept, *shape) if self.dependent else (size, *shape)
            for step, x in enumerate(_checked(iterates, expected, self.solver, self.dependent), start=1):
                failed = _mark(failed, x.reshape(size * kept, -1), step)
                advance(step)
                if on_step is not None:
                    on_step(step, x.detach().clone())
            x = x.detach().reshape(size * kept, *shape)
            # Whatever is left of a draw that failed is no draw.
            if bool(failed.any()):
                x = torch.where(failed.reshape(-1, *(1,) * len(shape)) > 0, torch.nan, x)
        wide = min(across, count - block.first_measurement)
        share = (cloud or 1) // kept
        return Outcome(
            _by_draw(x, down, across, kept)[:, :wide],
            _by_draw(failed, down, across, kept)[:, :wide],
            prior.calls * share,
            prior.backward * share,
        )

    def _first(
        self,
        likelihood: Likelihood | None,
        prior: Prior,
        like: Tensor,
        members: list[tuple[int, int]],
        random: MemberRandom,
    ) -> Tensor:
        if self.start is None:
            own = getattr(self.solver, "start", None)
            if own is not None:
                return own(likelihood, prior, like, random)
            return 0.5 + min(prior.sigma_range[1], 40.0) * random.normal(like)
        picked = self.start[[j for _, j in members]] if self.start.shape[0] > 1 else self.start
        x = (picked if self.cloud is None else picked[:, None]).expand_as(like).clone()
        return x if self.start_sigma is None else x + self.start_sigma * random.normal(like)


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """So many threads of the CPU while the block runs, as their number can change the last bits; None: as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mark(failed: Tensor, x: Tensor, step: int) -> Tensor:
    """`failed`, (b,), with this step for the rows of x that are infinite or NaN for the first time."""
    # A finite sum has finite terms, and is found in one pass; that of large terms may be infinite without one.
    if x.device.type == "cpu" and math.isfinite(x.sum().item()):
        return failed
    return torch.where(torch.isfinite(x).all(1) | (failed > 0), failed, step)


class Counted(Prior):
    """A prior that counts its calls, and the backward passes through them."""

    def __init__(self, prior: Prior) -> None:
        self.prior, self.calls, self.backward = prior, 0, 0
        self.name, self.channels = prior.name, prior.channels
        self.sigma_range, self.differentiable = prior.sigma_range, prior.differentiable
        self.jacobian_limit = prior.jacobian_limit

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.calls += 1
        out = self.prior(x, sigma)
        if out.requires_grad:
            out.register_hook(self._passed)
        return out

    def _passed(self, gradient: Tensor) -> None:
        self.backward += 1

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.prior.denoise(x, sigma)


def _by_draw(values: Tensor, down: int, across: int, kept: int) -> Tensor:
    """(down * across * kept, ...), members by cloud and measurement, as (down * kept, across, ...)."""
    inside = values.shape[1:]
    return values.reshape(down, across, kept, *inside).transpose(1, 2).reshape(down * kept, across, *inside)


def _checked(iterates: object, expected: tuple[int, ...], solver: Solver, dependent: bool) -> Iterator[Tensor]:
    """What a solver yields, refused unless it is at least one tensor and all are of the expected shape."""
    name = type(solver).__name__
    wanted = f"expected tensors of shape {expected}, (b, {'particles, ' if dependent else ''}*in_shape)."
    if isinstance(iterates, Tensor) or not isinstance(iterates, Iterable):
        raise TypeError(f"{name}.iterate returned {type(iterates).__name__} and yielded nothing: {wanted}")
    empty = True
    for x in iterates:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} yielded {type(x).__name__}: {wanted}")
        if x.shape != expected:
            raise ValueError(f"{name} yielded a tensor of shape {tuple(x.shape)}: {wanted}")
        empty = False
        yield x
    if empty:
        raise ValueError(f"{name} yielded nothing: {wanted}")


def _take(likelihood: Likelihood | None, members: list[tuple[int, int]], count: int) -> Likelihood | None:
    if likelihood is None or (count == 1 and likelihood.operator.batch is None):
        return likelihood
    return likelihood.take(torch.tensor([j for _, j in members]))
