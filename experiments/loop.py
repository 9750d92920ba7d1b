"""The training loop: steps, checkpoints, validation, and the file at the end.

Every step draws its crops and its noise from a stream of (seed, step) and of nothing else, so a run that was stopped
goes on from its last checkpoint with the numbers it would have seen, and several processes see what one would.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.priors.precision import resolve

from . import sheets, validate
from .data import Crops, Photographs, find, fixed_crops, read, split, without_twins
from .log import Log, logging, tensorboard_writer, write_rows
from .objective import Diffusion, Objective, build, fill_from
from .optimizers import learning_rate, optimizers
from .output import check_licences, make_card, mean_psnr, write_prior
from .parallel import World, join
from .settings import SettingsError, check, same_run, stride_of

__all__ = ["Diverged", "Run", "run"]


class Diverged(ArithmeticError):
    """The loss or its gradient is no longer finite."""


class Run:
    """A run between two steps: everything that a checkpoint holds.

    Args:
        settings: the plain settings.
        world: this process.
        sources: where the training images come from.
        images: how many there are.
    """

    def __init__(self, settings: dict[str, Any], world: World, sources: list[str], images: int) -> None:
        self.settings, self.world, self.sources, self.images = settings, world, sources, images
        self.out = Path(settings["out"])
        self.checkpoint = self.out / "last.pt"
        self.path = self.out / f"{settings['name']}.safetensors"
        self.objective: Objective = build(settings)
        self.network = self.objective.network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steppers = optimizers(self.network, settings["optimizer"], settings["lr"], settings["weight_decay"])
        self.keeps: list[float] = settings["ema"] if isinstance(settings["ema"], list) else [settings["ema"]]
        self.done, self.saved, self.seconds = 0, 0, 0.0
        self.precision = str(settings["precision"])
        self.origin: str | None = None
        self.rows: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.sums = torch.zeros(len(validate.BANDS) + 1, dtype=torch.float64)
        self.counts = torch.zeros_like(self.sums)
        if self.checkpoint.exists():
            self.averages: list[dict[str, Tensor]] = []
            self._restore()
        else:
            if settings["init"] is not None:
                fill_from(self.objective, settings["init"])
                self.origin = hashlib.sha256(Path(settings["init"]).read_bytes()).hexdigest()
            weights = {key: value.detach() for key, value in self.network.named_parameters()}
            self.averages = [{key: value.clone() for key, value in weights.items()} for _ in self.keeps]
        if self.precision == "auto":
            self.precision = str(resolve("auto", world.device)).removeprefix("torch.")

    def save(self) -> None:
        """Write the checkpoint at once or not at all."""
        state = {
            "settings": self.settings,
            "network": self.network.state_dict(),
            "optimizers": [stepper.state_dict() for stepper in self.steppers],
            "averages": self.averages,
            "images": self.images,
            "step": self.done,
            "seconds": self.seconds,
            # What "auto" came to: a probe could decide otherwise the next time.
            "precision": self.precision,
            "origin": self.origin,
            "rows": self.rows,
            "scores": self.scores,
            "sums": self.sums,
            "counts": self.counts,
        }
        temporary = self.checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        self.saved = self.done

    def _restore(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.world.device, weights_only=True)
            held = state["settings"]
        except Exception as error:
            raise SettingsError(f"{self.checkpoint} is no checkpoint of this program: use another out=.") from error
        same_run(self.settings, held)
        if state["images"] != self.images:
            raise SettingsError(
                f"data={self.settings['data']} has {self.images} images to train on, and the run in out={self.out} "
                f"began with {state['images']}: use the same images, or another out=."
            )
        self.network.load_state_dict(state["network"])
        for stepper, found in zip(self.steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(found)
        self.averages, self.done, self.seconds = state["averages"], state["step"], state["seconds"]
        self.saved, self.rows, self.scores = self.done, state["rows"], state["scores"]
        self.origin = state["origin"]
        self.sums, self.counts = state["sums"].cpu(), state["counts"].cpu()
        if self.settings["precision"] == "auto":
            self.precision = state["precision"]

    def autocast(self) -> torch.autocast:
        """The precision of the network's layers."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def step(self, crops: Crops, stop: bool) -> tuple[float, bool]:
        """One step; the loss, and whether any process was asked to stop.

        Raises:
            Diverged: the loss or the gradient is not finite; nothing is changed.
        """
        settings, size = self.settings, self.settings["batch"]
        numbers = np.random.default_rng([settings["seed"], self.done])
        generator = torch.Generator().manual_seed(int(numbers.integers(2**62)))
        x0 = crops.batch(size, numbers)
        sigma = self.objective.draw_sigma(size, generator)
        noise = torch.randn(x0.shape, generator=generator)
        x0, sigma, noise = (self.world.part(t) for t in (x0, sigma, noise))
        for stepper in self.steppers:
            for group in stepper.param_groups:
                group["lr"] = learning_rate(self.done, settings)
        with self.autocast():
            losses = self.objective.losses(x0, sigma, noise)
        mean = losses.mean()
        self.network.zero_grad()
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings["clip"])
        bands = validate.bands_of(sigma)
        each = losses.detach().double()
        sums = torch.zeros(len(self.sums), dtype=torch.float64, device=each.device).index_add_(0, bands, each)
        told = torch.cat([mean.detach()[None].double() / self.world.size, sums.new_tensor([float(stop)]), sums])
        told = torch.cat([told, bands.bincount(minlength=len(sums)).double()])
        told = self.world.total(told).cpu()
        loss, slope = float(told[0]), float(norm)
        for what, value in (("loss", loss), ("norm of the gradient", slope)):
            if not math.isfinite(value):
                raise Diverged(self._diverged(what, value))
        for stepper in self.steppers:
            stepper.step()
        with torch.no_grad():
            for keep, average in zip(self.keeps, self.averages, strict=True):
                share = 1 - min(keep, (self.done + 1) / (self.done + 10))
                for key, value in self.network.named_parameters():
                    average[key].lerp_(value, share)
        self.sums += told[2 : 2 + len(sums)]
        self.counts += told[2 + len(sums) :]
        self.done += 1
        return loss, bool(told[1] > 0)

    def _diverged(self, what: str, value: float) -> str:
        last = f"the last good checkpoint is {self.checkpoint} (step {self.saved})"
        kept = last if self.saved else "there is no checkpoint yet"
        return f"The {what} is {value} at step {self.done}: {kept}; use a lower lr or clip, in another out=."

    def interval(self, seconds: float, steps: int) -> dict[str, Any]:
        """The figures since the last call, and a new beginning."""
        row: dict[str, Any] = {
            "step": self.done,
            "loss": float(self.sums.sum() / self.counts.sum()),
            "lr": learning_rate(self.done - 1, self.settings),
            "s_per_step": seconds / max(steps, 1),
        }
        for name, total, count in zip(validate.band_names(), self.sums.tolist(), self.counts.tolist(), strict=True):
            if count:
                row[name] = total / count
        self.rows.append(row)
        self.sums.zero_()
        self.counts.zero_()
        return row

    def write(self, held: Tensor | None) -> dict[str, Any]:
        """Validate, write the file of the best average so far, and return the figures."""
        best: tuple[float, int, dict[str, float]] = (-math.inf, len(self.keeps) - 1, {})
        row: dict[str, Any] = {"step": self.done}
        path = self.path
        for n, keep in enumerate(self.keeps):
            if held is None:
                break
            prior = write_prior(self.objective, path.with_name(".average.safetensors"), self.averages[n], {})
            scores = validate.denoising_psnr(prior.to(self.world.device), held)
            row |= scores if len(self.keeps) == 1 else {f"{key} ema {keep:g}": v for key, v in scores.items()}
            best = max(best, (mean_psnr(scores), n, scores), key=lambda found: found[0])
            path.with_name(".average.safetensors").unlink()
        card = make_card(
            self.settings,
            sources=self.sources,
            images=self.images,
            scores=best[2],
            average=self.keeps[best[1]],
            steps=self.done,
            seconds=self.seconds,
            world=self.world,
            precision=self.precision,
            origin=self.origin,
        )
        prior = write_prior(self.objective, path, self.averages[best[1]], card).to(self.world.device)
        if held is None:
            return row
        runner, self.objective.runner = self.objective.runner, self.network
        with self.autocast():
            row |= validate.band_losses(self.objective, held, tuple(self.settings["sigma_range"]))
        self.objective.runner = runner
        self.scores = [*(known for known in self.scores if known["step"] != self.done), row]
        count = self.settings["sheets"]
        if count:
            folder = self.out / "sheets"
            folder.mkdir(exist_ok=True)
            sheets.denoised_sheet(prior, held[:count], folder / f"denoised_{self.done:07d}.png")
            if isinstance(self.objective, Diffusion):
                side = self.settings["crop"]
                shape = (self.settings["channels"], side, side)
                sheets.generated_sheet(prior, shape, count, folder / f"generated_{self.done:07d}.png")
        return row


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C ends the program at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for name in before:
        signal.signal(name, handle)
    try:
        yield event
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def photographs(settings: Mapping[str, Any]) -> tuple[Photographs, Photographs | None, list[str]]:
    """The images to train on, those held out, and what is to be said of them."""
    folder = Path(settings["data"])
    train, held = split(find(folder), settings["heldout"], settings["group"])
    train, twins = without_twins(folder, train, held)
    if not train:
        raise SettingsError(f"Every image in data={folder} is a copy of a held-out one: there is none to train on.")
    cache, limit = Path(settings["cache"]), settings["memory_gb"] * 2**30
    kept = read(folder, train, channels=settings["channels"], least=settings["crop"], limit=limit, cache=cache)
    notes = list(kept.notes)
    if twins:
        notes.append(f"{twins} of {len(train) + twins} images are copies of held-out ones and are left out.")
    count = settings["validation"]["crops"]
    chosen = [held[n * len(held) // count] for n in range(count)] if len(held) > count else held
    if not chosen:
        return kept, None, [*notes, "No image is held out, so there is no validation."]
    stride = stride_of(settings["network"])
    judged = read(folder, chosen, channels=settings["channels"], least=stride, limit=limit, cache=cache)
    return kept, judged, notes


def run(settings: dict[str, Any]) -> bool:
    """Train as the settings say, from the last checkpoint in `out` where there is one.

    Returns:
        Whether the run is finished; False after Ctrl-C.

    Raises:
        SettingsError: settings that cannot be used.
        Diverged: the loss is not finite.
    """
    check(settings)
    with join(settings["device"], settings["batch"]) as world, asked_to_stop() as stop:
        kept, judged, notes = photographs(settings)
        notes += check_licences(settings["licences"], kept.sources)
        state = Run(settings, world, kept.sources, len(kept.names))
        state.out.mkdir(parents=True, exist_ok=True)
        crops = Crops(kept.arrays, settings["crop"], flip=settings["flip"], rotate=settings["rotate"])
        held = None
        if judged is not None:
            wanted, stride = settings["validation"], stride_of(settings["network"])
            held = fixed_crops(judged.arrays, wanted["crops"], wanted["size"], stride).to(world.device)
        module = world.wrap(state.network)
        state.objective.runner = torch.compile(module) if settings["compile"] else module  # type: ignore[assignment]
        writer = tensorboard_writer(state.out / "tensorboard") if settings["tensorboard"] and world.first else None
        options: dict[str, Any] = {"quiet": not world.first, "progress": settings["progress"], "writer": writer}
        with logging(settings["steps"], state.done, settings["batch"], **options) as log:
            for note in notes:
                log.say(note)
            if state.done >= settings["steps"] and state.path.exists():
                log.say(
                    f"This run was finished at step {state.done}, and {state.path} holds its prior: raise steps= to go "
                    f"on, or use another out= to begin anew."
                )
            elif state.done:
                log.say(f"This run goes on from step {state.done}.")
            stopped = _steps(state, crops, held, log, stop)
            if stopped:
                log.say(f"Stopped at step {state.done}; the same command goes on from there.")
                return False
            if world.first:
                _validate(state, held, log)
                state.save()
        return True


def _validate(state: Run, held: Tensor | None, log: Log) -> None:
    if not (state.path.exists() and state.scores and state.scores[-1]["step"] == state.done):
        row = state.write(held)
        write_rows(state.out / "validation.csv", state.scores)
        log.row(row, "validation")
        log.skip_time()


def _steps(state: Run, crops: Crops, held: Tensor | None, log: Log, stop: threading.Event) -> bool:
    """All steps that are left; True if the run was asked to stop before the last."""
    settings, clock, since = state.settings, time.monotonic(), state.done
    while state.done < settings["steps"]:
        loss, stopped = state.step(crops, stop.is_set())
        log.step(state.done, loss)
        last = state.done == settings["steps"]
        due = state.done % settings["checkpoint_every"] == 0 or last
        if not (due or stopped):
            continue
        now = time.monotonic()
        state.seconds += now - clock
        if due:
            row = state.interval(now - clock, state.done - since)
            log.row(row, "training")
        clock, since = now, state.done
        if state.world.first:
            write_rows(state.out / "log.csv", state.rows)
            every = settings["validate_every"]
            if due and not last and every and state.done % every < settings["checkpoint_every"]:
                _validate(state, held, log)
                clock = time.monotonic()
            state.save()
        if stopped and not last:
            return True
    return False
