"""Running an ensemble: one micro-batch after another, or on workers, in memory or in a folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .ensemble import Block, Ensemble, Outcome
from .montecarlo import Auto, Watch
from .posterior import Posterior
from .progress import Progress, progress_bar
from .record import environment
from .solvers.base import Solver

if TYPE_CHECKING:
    from .distributed import Dask
    from .store import Store

__all__ = ["OnStep", "find_engine", "in_folder", "in_memory", "say_failed"]

OnStep = Callable[[int, Tensor], None]


class _TooLarge(Exception):
    """A micro-batch that did not fit into memory."""


def find_engine(engine: str | Dask | None, on_step: OnStep | None) -> Dask | None:
    """The workers that were asked for; None computes here.

    Raises:
        ValueError: another engine, or on_step, which would have to be called in other processes.
    """
    if engine is None:
        return None
    from .distributed import Dask

    if isinstance(engine, str) and engine == "dask":
        engine = Dask()
    if not isinstance(engine, Dask):
        raise ValueError(f"engine is {engine!r}: expected None, 'dask' or invdiff.distributed.Dask(...).")
    if on_step is not None:
        raise ValueError("on_step is given with an engine: the steps happen in other processes; leave one of them out.")
    return engine


def in_memory(
    ensemble: Ensemble, draws: int, on_step: OnStep | None, progress: bool, auto: Auto | None = None
) -> Posterior:
    """All draws, kept in memory, or with a rule as many as it takes; Ctrl-C keeps those that are finished."""
    asked, interrupted = ensemble.size, False
    while True:
        blocks, done, cost = ensemble.blocks(draws), 0, (0, 0)
        watch = None if auto is None else _watch(ensemble, auto)
        values = steps = torch.empty(0)
        with progress_bar(ensemble.solver, draws * ensemble.measurements, len(blocks), progress) as bar:
            try:
                for block, outcome in zip(blocks, _outcomes(ensemble, blocks, draws, on_step, bar), strict=True):
                    place = ensemble.place(block, draws)
                    if done == 0:
                        # The whole result at once: parts that are joined later would be there twice.
                        cost = outcome.nfe, outcome.nfe_backward
                        room = draws if watch is None else min(watch.expected, draws)
                        values, steps = (_room(ensemble, part, room) for part in (outcome.draws, outcome.failed))
                    if place[0].stop > len(values):
                        room = min(2 * place[0].stop, draws)
                        values, steps = (_larger(ensemble, part, room) for part in (values, steps))
                    wanted = place[0].stop - place[0].start
                    values[place], steps[place] = outcome.draws[:wanted], outcome.failed[:wanted]
                    done += 1
                    whole = _whole(ensemble, done, draws)
                    if watch is not None and _enough(watch, values[watch.count : whole], bar):
                        draws = whole
                        break
            except _TooLarge as error:
                if done:
                    kept = f"{_whole(ensemble, done, draws)} of {draws} draws, which are lost without a store"
                    raise _stopped(ensemble, kept, "") from error
                ensemble = _smaller(ensemble, error)
                continue
            except KeyboardInterrupt:
                whole = _whole(ensemble, done, draws)
                if whole == 0:
                    raise
                wanted_in_all = f" of {draws}" if auto is None else ""
                warnings.warn(f"Interrupted: {whole}{wanted_in_all} draws are finished and kept.", stacklevel=3)
                draws, interrupted = whole, True
        break
    # Room that draws did not need is given back.
    values, steps = (part[:draws] if auto is None else part[:draws].clone() for part in (values, steps))
    record = ensemble.settings() | {
        "micro_batch_asked": asked,
        "draws": draws,
        "batched": ensemble.batched,
        "failed": [{"draw": k, "measurement": j, "step": int(steps[k, j])} for k, j in steps.nonzero().tolist()],
        "nfe": cost[0],
        "nfe_backward": cost[1],
        "interrupted": interrupted,
        "environment": environment(ensemble.device),
    }
    if watch is not None:
        record["auto"] = watch.record()
    return Posterior(values if ensemble.batched else values[:, 0], record, ensemble.label)


def in_folder(
    ensemble: Ensemble,
    draws: int,
    store: Store,
    micro_batch: int | None,
    engine: Dask | None,
    on_step: OnStep | None,
    progress: bool,
    auto: Auto | None = None,
) -> Posterior:
    """All draws that the folder does not hold yet, each written as soon as its micro-batch is done.

    With a rule, draws is the most there will be; those that a folder holds beyond the number at which the rule stops
    are left out.

    Raises:
        ValueError: the folder was begun with other settings.
        BlockingIOError: another process writes to it.
        MemoryError: a later micro-batch does not fit into memory, or with an engine any.
        OSError: it cannot be written to, or was removed.
        RuntimeError: as the engine says.
    """
    from .stored import Stored

    asked = ensemble.size
    if engine is not None:
        engine.refuse_worker()
    while True:
        if not store.exists:
            if engine is not None:
                ensemble = engine.fitted(ensemble)
            store.create(ensemble, draws if auto is None else _round(ensemble, auto, 0, 0, engine), asked)
        else:
            ensemble = _as_begun(ensemble, store.attributes(), micro_batch, engine)
        with store.locked():
            store.require_same(ensemble)
            store.keep_truth(ensemble)
            try:
                work = _Work(ensemble, store, engine, on_step, progress)
                interrupted, watch = (_fill(work, draws), None) if auto is None else _fill_until(work, auto)
                store.require_there()
                break
            except _TooLarge as error:
                stored = Stored(store.path)
                if stored.done.any():
                    kept = f"{stored.finished} of {draws} draws are kept in {store.path}"
                    cure = " and another folder, or make memory free and run it again"
                    raise _stopped(ensemble, kept, cure) from error
                ensemble = _smaller(ensemble, error)
                store.remove()
    wanted = f" of {draws}"
    if watch is not None:
        draws, wanted = watch.count if not interrupted else min(Stored(store.path).finished, draws), ""
    # Whatever became of draws that nobody asked for.
    stored = Stored(store.path, draws=draws)
    record = stored.record(draws)
    record.pop("auto", None)
    if interrupted:
        if record["draws"] == 0:
            raise KeyboardInterrupt
        record["interrupted"] = True
        warnings.warn(
            f"Interrupted: {record['draws']}{wanted} draws are finished and kept in {store.path}; run it again to "
            "go on.",
            stacklevel=3,
        )
    if watch is not None:
        record["auto"] = watch.record()
    return Posterior(stored, record, ensemble.label)


def _as_begun(ensemble: Ensemble, begun: dict[str, Any], micro_batch: int | None, engine: Dask | None) -> Ensemble:
    """The ensemble with what a folder was begun with and the caller left open: threads, and the micro-batch.

    A micro-batch that was made smaller for want of memory stays so, also where it is asked for in full again.
    """
    settings = begun["settings"]
    if micro_batch in (None, begun["micro_batch_asked"]):
        ensemble = replace(ensemble, size=int(settings["micro_batch"]))
    return replace(ensemble, threads=(engine and engine.threads) or settings["machine"]["threads"])


def say_failed(posterior: Posterior, solver: Solver) -> None:
    """Warn of draws that are not finite.

    Raises:
        FloatingPointError: if there are no others.
    """
    failed = posterior.record["failed"]
    if not failed:
        return
    sizes = ", ".join(name for name in ("zeta", "lam") if hasattr(solver, name))
    cure = f"a smaller step ({sizes}) or more steps" if sizes else "more steps"
    step = failed[0]["step"]
    first = f"Draw {failed[0]['draw']} of measurement {failed[0]['measurement']}"
    name, total = type(solver).__name__, len(posterior) * posterior.record["measurements"]
    if len(failed) == total:
        raise FloatingPointError(f"{first} is not finite: {name} diverged at step {step}; use {cure}.")
    warnings.warn(
        f"{len(failed)} of {total} draws are not finite: {name} diverged ({first} at step {step}); they are marked "
        f"failed and count in no statistic; use {cure}.",
        stacklevel=3,
    )


@dataclass(frozen=True)
class _Work:
    """What fills a folder: arguments of `in_folder`."""

    ensemble: Ensemble
    store: Store
    engine: Dask | None
    on_step: OnStep | None
    progress: bool


def _fill(work: _Work, draws: int) -> bool:
    """Compute and write what is missing; whether Ctrl-C ended it early."""
    ensemble = work.ensemble
    todo = work.store.prepare(ensemble, draws)
    work.store.forget_auto(draws)
    total = draws * ensemble.measurements
    already = total - sum(_count(ensemble, block, draws) for block in todo)
    with progress_bar(ensemble.solver, total, len(todo), work.progress, already) as bar:
        return _compute(work, todo, draws, bar)


def _fill_until(work: _Work, auto: Auto) -> tuple[bool, Watch]:
    """As `_fill`, round by round, until the rule has enough; and what it has seen."""
    from .stored import Stored

    ensemble, watch, end = work.ensemble, _watch(work.ensemble, auto), 0
    total, blocks = auto.maximum * ensemble.measurements, len(ensemble.blocks(auto.maximum))
    with progress_bar(ensemble.solver, total, blocks, work.progress) as bar:
        while True:
            begin, end = end, _round(ensemble, auto, end, watch.expected, work.engine)
            todo = work.store.prepare(ensemble, end, begin)
            if todo:
                work.store.forget_auto(end)
            for block in ensemble.blocks(end):
                if block.first_cloud * ensemble.kept >= begin and block not in todo:
                    bar.block(_count(ensemble, block, end))
            if _compute(work, todo, end, bar):
                return True, watch
            stored = Stored(work.store.path, draws=end)
            for part in stored.blocks(end, first=begin):
                if _enough(watch, part if ensemble.batched else part[:, None], bar):
                    work.store.note("auto", watch.record())
                    return False, watch


def _compute(work: _Work, todo: list[Block], draws: int, bar: Progress) -> bool:
    """Compute and write these micro-batches; whether Ctrl-C ended it early."""
    ensemble, store = work.ensemble, work.store
    try:
        if work.engine is not None:
            work.engine.run(ensemble, store, todo, bar)
            return False
        for block, outcome in zip(todo, _outcomes(ensemble, todo, draws, work.on_step, bar), strict=True):
            store.write(ensemble, block, outcome)
    except KeyboardInterrupt:
        return True
    except OSError:
        # Of all that goes wrong where a folder was removed, that is what to say.
        store.require_there()
        raise
    return False


def _watch(ensemble: Ensemble, auto: Auto) -> Watch:
    return Watch(auto, ensemble.grid[0] * ensemble.kept, ensemble.kept)


def _enough(watch: Watch, draws: Tensor, bar: Progress) -> bool:
    """Show draws, (k, m, *in_shape), to the rule: whether there are enough."""
    found = watch.add(draws)
    if watch.error == watch.error:
        bar.say(f"error {watch.error:.3g} of {watch.auto.tolerance:g}")
    return found is not None


def _round(ensemble: Ensemble, auto: Auto, begin: int, expected: int, engine: Dask | None) -> int:
    """The number of draws up to which the next micro-batches go: one row of them, or with workers all that will do.

    Which draws are there never decides how many count, so that workers may compute some in vain.
    """
    rows = ensemble.grid[0] * ensemble.kept
    end = begin + rows if engine is None else max(begin + rows, expected, auto.minimum)
    return min(-(-end // rows) * rows, auto.maximum)


def _outcomes(
    ensemble: Ensemble, blocks: list[Block], draws: int, on_step: OnStep | None, bar: Progress
) -> Iterator[Outcome]:
    """The outcome of every micro-batch.

    Raises:
        _TooLarge: one does not fit into memory.
    """
    for block in blocks:
        try:
            outcome = ensemble.run(block, bar.step, on_step)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise _TooLarge(str(error)) from None
        yield outcome
        bar.block(_count(ensemble, block, draws))


def _count(ensemble: Ensemble, block: Block, draws: int) -> int:
    rows, columns = ensemble.place(block, draws)
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU.

    >>> out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")), (
    ...     out_of_memory(RuntimeError("shape mismatch"))
    ... )
    (True, False)
    """
    said = ("can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)


def _smaller(ensemble: Ensemble, error: Exception) -> Ensemble:
    """The ensemble in micro-batches of half the size.

    Raises:
        MemoryError: there is no smaller one.
    """
    down, across = ensemble.grid
    size = down * across // 2
    if size == 0:
        raise MemoryError(
            f"One image of shape {ensemble.shape} does not fit into memory with {type(ensemble.solver).__name__} and "
            f"{ensemble.prior.name} ({error}): use tiles (priors.Tiled) or a smaller image."
        )
    if ensemble.device.type == "cuda":
        torch.cuda.empty_cache()
    warnings.warn(
        f"A micro-batch of {down * across} does not fit into memory: {size} at a time are taken, as the record says.",
        stacklevel=4,
    )
    return replace(ensemble, size=size)


def _stopped(ensemble: Ensemble, kept: str, other: str) -> MemoryError:
    down, across = ensemble.grid
    return MemoryError(
        f"Memory ran out in a micro-batch of {down * across}, after {kept}: use "
        f"micro_batch={max(1, down * across // 2)}{other}."
    )


def _whole(ensemble: Ensemble, blocks: int, draws: int) -> int:
    """The number of draws that so many first micro-batches hold for all measurements."""
    down, across = ensemble.grid
    rows = blocks // -(-ensemble.measurements // across)
    return min(rows * down * ensemble.kept, draws)


def _larger(ensemble: Ensemble, part: Tensor, draws: int) -> Tensor:
    """What there is, (k, m, ...), in memory for more draws."""
    room = _room(ensemble, part, draws)
    room[: len(part)] = part
    return room


def _room(ensemble: Ensemble, part: Tensor, draws: int) -> Tensor:
    """Memory for all that a micro-batch gave a part of, (draws, m, ...)."""
    return part.new_empty(draws, ensemble.measurements, *part.shape[2:])
