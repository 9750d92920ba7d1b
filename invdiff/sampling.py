"""The only loop: draws, micro-batches, one random stream per draw, progress."""

from __future__ import annotations

import itertools
import math
import numbers
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .likelihood import Likelihood
from .posterior import DEPENDENT, POINT, Posterior
from .priors.base import Denoiser, Prior, as_prior
from .progress import progress_bar
from .random import MemberRandom
from .record import describe, environment
from .solvers.base import CapabilityError, DiffusionSolver, Solver
from .start import channels_last, check_start, cut_at_start, one_for_each

__all__ = ["default_micro_batch", "sample"]


def sample(
    solver: Solver,
    likelihood: Likelihood | None,
    denoiser: Denoiser | Callable[[Tensor, Tensor], Tensor],
    *,
    draws: int = 1,
    seed: int = 0,
    in_shape: Sequence[int] | None = None,
    start: Tensor | None = None,
    start_sigma: float | None = None,
    device: torch.device | str | None = None,
    micro_batch: int | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    progress: bool = True,
) -> Posterior:
    """Run a solver for every draw of every measurement.

    Draw k of measurement j is a function of (seed, k, j) and the micro-batch alone: the number of draws asked for and
    the other members of its batch do not change it. Ctrl-C keeps the draws that are finished.

    A solver that declares `particles` (`solvers.cloud.CloudSolver`) moves a cloud of them for every member of the
    batch. By default a cloud gives one draw, so that draws are independent; with `keep="cloud"` it gives all of its
    particles as dependent draws: ceil(draws / particles) clouds run, of which cloud k is a function of (seed, k, j),
    and record and label say that the draws are dependent.

    Args:
        solver: what to run.
        likelihood: the measurement, with its operator and noise; None draws from the prior.
        denoiser: the prior, any callable (x, sigma) -> estimate of x0.
        draws: number of draws per measurement; 1 for solvers that give a point estimate.
        seed: integer from 0 on.
        in_shape: shape of one image, where no likelihood, prior or start tells it.
        start: image to start from, floats in about [0, 1], (*in_shape), or one for each of m measurements,
            (m, *in_shape); without a likelihood one image, (*in_shape) or (1, *in_shape).
        start_sigma: noise level added to `start` by diffusion solvers, image units; they go on from there.
        device: where to run; if left out where y is, and without a likelihood where `start` is, else the prior, else
            the CPU. The draws have the dtype of y, and without a likelihood that of `start`, but at least float32.
        micro_batch: members per batch, each a cloud where the solver has clouds, the last one being filled up; the
            default depends on the image shape and the number of particles alone.
        on_step: called with the step number and a copy of the iterates, (micro_batch, *in_shape), and with
            keep="cloud" (micro_batch, particles, *in_shape).
        progress: show a progress bar on a terminal.

    Raises:
        TypeError: if the solver has no `iterate` or yields what is no tensor, the likelihood is not a Likelihood or
            `start` no tensor of floats.
        CapabilityError: if solver, operator, noise and prior do not go together.
        ValueError: for any other setting that cannot be used, or a solver that yields nothing or tensors of another
            shape than (b, *in_shape), (b, particles, *in_shape) with keep="cloud".
        FloatingPointError: if a draw becomes infinite or NaN.
    """
    if isinstance(solver, type):
        raise TypeError(f"solver is the class {solver.__name__}: expected an instance, {solver.__name__}().")
    if isinstance(denoiser, str):
        raise TypeError(f"denoiser is {denoiser!r}: expected a prior; load one with priors.load({denoiser!r}).")
    if not isinstance(solver, Solver):
        raise TypeError(f"solver is {type(solver).__name__}: expected an object with `iterate`, such as DDRM().")
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood is {type(likelihood).__name__}: expected Likelihood(y, operator, noise) or None.")
    if isinstance(draws, bool) or not isinstance(draws, numbers.Integral) or draws < 1:
        raise ValueError(f"draws is {draws!r}: expected a whole number from 1 on.")
    draws = int(draws)
    if not solver.stochastic and draws != 1:
        raise ValueError(
            f"{type(solver).__name__} gives one point estimate: ask for draws=1, not {draws}, or use DDRM or DPS."
        )
    MemberRandom(seed, [])
    if start is not None:
        check_start(start)
    prior = as_prior(denoiser)
    shape = _shape(likelihood, prior, in_shape, start)
    solver = cut_at_start(solver, start, start_sigma, prior)
    if device is not None:
        where = torch.device(device)
    elif likelihood is not None:
        where = likelihood.y.device
    else:
        where = start.device if start is not None else held_on(prior)
    if likelihood is not None:
        dtype = likelihood.y.dtype
    else:
        dtype = torch.float32 if start is None else torch.promote_types(start.dtype, torch.float32)
    if likelihood is not None:
        likelihood = likelihood.to(where)
    prior = prior.to(where)
    check = getattr(solver, "check", None)
    if check is not None:
        check(likelihood, prior)
    if likelihood is None and start is None and isinstance(solver, DiffusionSolver):
        solver.check_noise_start(prior)
    count = 1 if likelihood is None else likelihood.measurements
    started = None if start is None else one_for_each(start, shape, count, prior).to(where, dtype)
    cloud: int | None = getattr(solver, "particles", None)
    dependent = cloud is not None and getattr(solver, "keep", "one") == "cloud"
    kept = cloud if cloud is not None and dependent else 1
    size = batch_size(micro_batch, shape, cloud or 1)
    if not solver.stochastic:
        size = min(size, count)
    counted = _Counted(prior)
    clock = time.monotonic()
    finished: list[Tensor] = []
    interrupted, calls, backward = False, 0, 0
    total = math.ceil(draws / kept) * count
    with progress_bar(solver, draws * count, size * kept, progress) as advance:
        try:
            for first in range(0, total, size):
                members = [divmod(index, count) for index in range(first, first + size)]
                random = MemberRandom(seed, members)
                chunk = _take(likelihood, members, count)
                inside = shape if cloud is None else (cloud, *shape)
                like = torch.empty(size, *inside, dtype=dtype, device=where)
                with torch.no_grad():
                    if started is not None:
                        picked = started[[j for _, j in members]] if started.shape[0] > 1 else started
                        x = (picked if cloud is None else picked[:, None]).expand_as(like).clone()
                        if start_sigma is not None:
                            x = x + start_sigma * random.normal(like)
                    else:
                        x = _initial(solver, chunk, counted, like, random)
                    iterates = solver.iterate(chunk, counted, x, random)  # type: ignore[arg-type]
                    expected = (size, kept, *shape) if dependent else (size, *shape)
                    for step, x in enumerate(_checked(iterates, expected, solver, dependent), start=1):
                        advance(step)
                        if on_step is not None:
                            on_step(step, x.detach().clone())
                finished.append(x.detach().reshape(size, kept, *shape))
                calls, backward = counted.calls, counted.backward
                _refuse_nonfinite(x, members[: total - first], solver)
        except KeyboardInterrupt:
            whole = min(len(finished) * size // count * kept, draws)
            if whole == 0:
                raise
            warnings.warn(f"Interrupted: {whole} of {draws} draws are finished and kept.", stacklevel=2)
            draws, interrupted = whole, True
    clouds = torch.cat(finished)[: math.ceil(draws / kept) * count].reshape(-1, count, kept, *shape)
    result = clouds.transpose(1, 2).reshape(-1, count, *shape)[:draws]
    if likelihood is None or not likelihood.batched:
        result = result[:, 0]
    record: dict[str, Any] = {
        "solver": describe(solver),
        "prior": describe(prior),
        "operator": None if likelihood is None else describe(likelihood.operator),
        "noise": None if likelihood is None else describe(likelihood.noise),
        "seed": int(seed),
        "draws": draws,
        "measurements": count,
        "micro_batch": size,
        "in_shape": list(shape),
        "start": describe(start),
        "start_sigma": describe(start_sigma),
        "dtype": str(dtype).removeprefix("torch."),
        # Network evaluations for one returned draw: a cloud that gives one draw pays for all of its particles.
        "nfe": calls // len(finished) * (cloud or 1) // kept,
        "nfe_backward": backward // len(finished) * (cloud or 1) // kept,
        "cloud": cloud,
        "dependent": dependent,
        "seconds": round(time.monotonic() - clock, 3),
        "interrupted": interrupted,
        "environment": environment(where),
    }
    label = _label(solver, prior, guessed=likelihood is not None or start is None)
    return Posterior(result, record, f"{label} {DEPENDENT}" if dependent else label)


def default_micro_batch(in_shape: Sequence[int], particles: int = 1) -> int:
    """The power of two, 1 to 16, that keeps a batch within 2^18 values: it depends on shape and particles alone.

    The last batch is filled up, so that a large one would cost a few draws of small images as much as many.

    >>> default_micro_batch((3, 256, 256)), default_micro_batch((3, 64, 64)), default_micro_batch((1, 28, 28), 64)
    (1, 16, 4)
    """
    fitting = 2**18 // (math.prod(in_shape) * particles)
    return min(2 ** (fitting.bit_length() - 1), 16) if fitting else 1


def batch_size(micro_batch: int | None, in_shape: Sequence[int], particles: int = 1) -> int:
    """The members per batch that were asked for, or the default.

    Raises:
        ValueError: for anything but a whole number from 1 on, or None.
    """
    if micro_batch is None:
        return default_micro_batch(in_shape, particles)
    if isinstance(micro_batch, bool) or not isinstance(micro_batch, numbers.Integral) or micro_batch < 1:
        raise ValueError(f"micro_batch is {micro_batch!r}: expected a whole number from 1 on.")
    return int(micro_batch)


def held_on(prior: Prior) -> torch.device:
    """The device of the first network that a prior holds, else of its first tensor; the CPU where it holds neither.

    >>> held_on(as_prior(nn.Conv2d(1, 1, 3)))
    device(type='cpu')
    """
    found = list(_tensors(prior, set()))
    # Tables, such as those of a forward process, stay on the CPU wherever the network is.
    for wanted in (True, False):
        for tensor, weight in found:
            if weight == wanted:
                return tensor.device
    return torch.device("cpu")


def _tensors(thing: object, seen: set[int]) -> Iterator[tuple[Tensor, bool]]:
    """The tensors in the public attributes of a prior and of what it wraps, and whether each is a network's."""
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing, False
    elif isinstance(thing, nn.Module):
        yield from ((tensor, True) for tensor in itertools.chain(thing.parameters(), thing.buffers()))
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            yield from _tensors(item, seen)
    elif isinstance(thing, Denoiser) or type(thing).__module__.startswith("invdiff."):
        for name, value in vars(thing).items() if hasattr(thing, "__dict__") else ():
            if not name.startswith("_"):
                yield from _tensors(value, seen)


class _Counted(Prior):
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


def _shape(
    likelihood: Likelihood | None, prior: Prior, in_shape: Sequence[int] | None, start: Tensor | None
) -> tuple[int, ...]:
    known = likelihood.operator.in_shape if likelihood is not None else getattr(prior, "in_shape", None)
    in_shape_given = in_shape is not None
    if known is None and in_shape is None and start is not None:
        if start.ndim not in (3, 4):
            raise ValueError(f"start has shape {tuple(start.shape)}: expected one image (C, H, W).")
        in_shape = start.shape[-3:]
    if known is None and in_shape is None:
        raise ValueError(
            "in_shape is missing: without a likelihood, sample needs the image shape, such as (3, 64, 64)."
        )
    shape = tuple(in_shape) if in_shape is not None else tuple(known or ())
    if known is not None and shape != tuple(known):
        raise ValueError(
            f"in_shape is {shape}: the {'operator' if likelihood else 'prior'} takes images of {tuple(known)}."
        )
    if likelihood is None and channels_last(shape, prior.channels):
        first = (shape[-1], *shape[:-1])
        given = in_shape_given or start is None
        cure = f"give {first}" if given else "give start.movedim(-1, -3)"
        what = "in_shape is" if given else "start has the shape"
        raise ValueError(f"{what} {shape}, with the channels last: expected (C, H, W); {cure}.")
    asks = "in_shape is" if likelihood is None else "the operator takes"
    own = getattr(prior, "in_shape", None)
    if own is not None and tuple(own) != shape:
        raise CapabilityError(f"{prior.name} is of images of shape {tuple(own)}; {asks} {shape}.")
    if prior.channels is not None and (len(shape) != 3 or shape[0] != prior.channels):
        raise CapabilityError(
            f"{prior.name} serves images of {prior.channels} channels; {asks} {shape}. "
            f"Wrap the prior: invdiff.priors.match_channels(prior, {shape[0]})."
        )
    return shape


def _initial(solver: Solver, likelihood: Likelihood | None, prior: Prior, like: Tensor, random: MemberRandom) -> Tensor:
    own = getattr(solver, "start", None)
    if own is not None:
        return own(likelihood, prior, like, random)
    return 0.5 + min(prior.sigma_range[1], 40.0) * random.normal(like)


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


def _label(solver: Solver, prior: Prior, guessed: bool) -> str:
    if not solver.stochastic:
        return POINT
    heuristic = guessed and isinstance(solver, DiffusionSolver) and solver.heuristic(prior)
    return "heuristic spread" if heuristic else "uncalibrated spread"


def _refuse_nonfinite(x: Tensor, members: list[tuple[int, int]], solver: Solver) -> None:
    fine = torch.isfinite(x).flatten(1).all(1)
    sizes = ", ".join(name for name in ("zeta", "lam") if hasattr(solver, name))
    cure = f"a smaller step ({sizes}) or more steps" if sizes else "more steps"
    for (draw, measurement), good in zip(members, fine.tolist(), strict=False):
        if not good:
            raise FloatingPointError(
                f"Draw {draw} of measurement {measurement} is not finite: {type(solver).__name__} diverged; use {cure}."
            )
