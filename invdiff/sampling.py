"""The only way to run a solver: every draw of every measurement, checked before the first step."""

from __future__ import annotations

import itertools
import math
import numbers
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from .ensemble import Ensemble
from .likelihood import Likelihood
from .montecarlo import auto_of, say_reached
from .posterior import Posterior
from .priors.base import Denoiser, Prior, as_prior
from .random import MemberRandom
from .running import find_engine, in_folder, in_memory, say_failed
from .solvers.base import CapabilityError, DiffusionSolver, Solver
from .start import channels_last, check_start, cut_at_start, one_for_each

if TYPE_CHECKING:
    from .distributed import Dask

__all__ = ["default_micro_batch", "sample"]


def sample(
    solver: Solver,
    likelihood: Likelihood | None,
    denoiser: Denoiser | Callable[[Tensor, Tensor], Tensor],
    *,
    draws: int | Literal["auto"] = 1,
    tolerance: float | None = None,
    min_draws: int | None = None,
    max_draws: int | None = None,
    seed: int = 0,
    in_shape: Sequence[int] | None = None,
    start: Tensor | None = None,
    start_sigma: float | None = None,
    device: torch.device | str | None = None,
    micro_batch: int | None = None,
    store: str | os.PathLike[str] | None = None,
    truth: Tensor | None = None,
    engine: str | Dask | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    progress: bool = True,
) -> Posterior:
    """Run a solver for every draw of every measurement.

    Draw k of measurement j is a function of (seed, k, j) and the micro-batch alone: the number of draws asked for and
    the other members of its batch do not change it. Ctrl-C keeps the draws that are finished. With `store` they are
    written to a folder as they come, and the same call goes on where it ended, also to more draws (`invdiff.store`).

    A draw that becomes infinite or NaN is marked failed in the record, with its step, and counts in no statistic; the
    others go on, and a warning says how many.

    A solver that declares `particles` (`solvers.cloud.CloudSolver`) moves a cloud of them for every member of the
    batch. By default a cloud gives one draw, so that draws are independent; with `keep="cloud"` it gives all of its
    particles as dependent draws: ceil(draws / particles) clouds run, of which cloud k is a function of (seed, k, j),
    and record and label say that the draws are dependent.

    Args:
        solver: what to run.
        likelihood: the measurement, with its operator and noise; None draws from the prior.
        denoiser: the prior, any callable (x, sigma) -> estimate of x0.
        draws: number of draws per measurement; 1 for solvers that give a point estimate. "auto" draws a micro-batch
            after another until the Monte Carlo errors of mean and std are small enough (`montecarlo.Auto`); the record
            says which were reached, and how many more draws halve them.
        tolerance: with "auto", of those errors, each the root mean square over an image, in image units; 0.005.
        min_draws, max_draws: with "auto", at least and at most so many; 19 and 256.
        seed: integer from 0 on.
        in_shape: shape of one image, where no likelihood, prior or start tells it.
        start: image to start from, floats in about [0, 1], (*in_shape), or one for each of m measurements,
            (m, *in_shape); without a likelihood one image, (*in_shape) or (1, *in_shape).
        start_sigma: noise level added to `start` by diffusion solvers, image units; they go on from there.
        device: where to run; if left out where y is, and without a likelihood where `start` is, else the prior, else
            the CPU. The draws have the dtype of y, and without a likelihood that of `start`, but at least float32.
        micro_batch: members per batch, each a cloud where the solver has clouds, the last one being filled up; the
            default depends on the image shape and the number of particles alone. Where the first does not fit into
            memory, half as many are taken, with a warning, unless there is an engine; the record says how many.
        store: a folder that keeps the draws, new or one that this call began before; statistics of what comes back go
            through it a part at a time.
        truth: the image itself where it is known, ([m,] *in_shape), kept in `store` for reports; no draw depends on it.
        engine: "dask" or `invdiff.distributed.Dask(...)` for micro-batches on workers, which write to `store`.
        on_step: called with the step number and a copy of the iterates, (micro_batch, *in_shape), and with
            keep="cloud" (micro_batch, particles, *in_shape).
        progress: show a progress bar on a terminal.

    Raises:
        TypeError: if the solver has no `iterate` or yields what is no tensor, the likelihood is not a Likelihood or
            `start` no tensor of floats.
        CapabilityError: if solver, operator, noise and prior do not go together.
        ValueError: for any other setting that cannot be used, or a solver that yields nothing or tensors of another
            shape than (b, *in_shape), (b, particles, *in_shape) with keep="cloud".
        FloatingPointError: if no draw is finite.
        MemoryError: if one image, or a micro-batch after the first, does not fit into memory.
        FileExistsError, FileNotFoundError, BlockingIOError, OSError: if the folder is something else, has no parent or
            was removed, is written to by another process, cannot be written to or is damaged.
    """
    if isinstance(solver, type):
        raise TypeError(f"solver is the class {solver.__name__}: expected an instance, {solver.__name__}().")
    if isinstance(denoiser, str):
        raise TypeError(f"denoiser is {denoiser!r}: expected a prior; load one with priors.load({denoiser!r}).")
    if not isinstance(solver, Solver):
        raise TypeError(f"solver is {type(solver).__name__}: expected an object with `iterate`, such as DDRM().")
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood is {type(likelihood).__name__}: expected Likelihood(y, operator, noise) or None.")
    most, auto = auto_of(draws, tolerance, min_draws, max_draws)
    if not solver.stochastic and draws != 1:
        raise ValueError(
            f"{type(solver).__name__} gives one point estimate: ask for draws=1, not {draws}, or use KPS or DDRM."
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
    ensemble = Ensemble(
        solver,
        likelihood,
        prior,
        int(seed),
        shape,
        batch_size(micro_batch, shape, getattr(solver, "particles", None) or 1),
        dtype,
        where,
        started,
        start_sigma,
    )
    runner = find_engine(engine, on_step)
    clock = time.monotonic()
    if store is None:
        if truth is not None:
            raise ValueError("truth is given without a store: it is kept beside the draws; give store=FOLDER, or none.")
        if runner is not None:
            raise ValueError(f"engine is {engine!r} without a store: give store=FOLDER, which the workers write to.")
        posterior = in_memory(ensemble, most, on_step, progress, auto)
    else:
        from .store import Store

        folder = Store(store, truth=_truth(truth, ensemble))
        posterior = in_folder(ensemble, most, folder, micro_batch, runner, on_step, progress, auto)
    posterior.record["seconds"] = round(time.monotonic() - clock, 3)
    say_failed(posterior, solver)
    if auto is not None:
        say_reached(posterior)
    return posterior


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


def _truth(truth: Tensor | None, ensemble: Ensemble) -> Tensor | None:
    expected = (*((ensemble.measurements,) if ensemble.batched else ()), *ensemble.shape)
    if truth is None:
        return None
    if tuple(truth.shape) != expected:
        raise ValueError(f"truth has shape {tuple(truth.shape)}: expected {expected}, that of one draw.")
    if not truth.is_floating_point():
        raise ValueError(f"truth is {truth.dtype}: expected floats in the units of the draws, as pixels / 255.")
    if not bool(torch.isfinite(truth).all()):
        raise ValueError("truth holds values that are not finite: put numbers in their place, or leave it out.")
    return truth


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
