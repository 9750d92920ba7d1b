"""The loop: starts, interruption, refusals, progress."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.priors.base import Prior
from invdiff.record import describe
from invdiff.sampling import default_micro_batch, held_on
from invdiff.solvers import DDRM, DPS, CapabilityError, Heun, PnPHQS, Solver
from invdiff.solvers.cloud import CloudSolver

SHAPE = (1, 4, 4)


def likelihood(sigma: float = 0.1) -> Likelihood:
    return Likelihood(torch.full(SHAPE, 0.6), Identity(SHAPE), GaussianNoise(sigma))


def prior() -> GaussianPrior:
    return GaussianPrior.power_law(SHAPE)


@dataclasses.dataclass(frozen=True)
class Walk:
    """The smallest solver somebody could write: no base class, no start of its own."""

    stochastic = True
    steps: int = 3

    def iterate(self, likelihood, denoiser, x, random) -> Iterator[Tensor]:
        for _ in range(self.steps):
            x = x + random.normal(x)
            yield x


def test_a_solver_of_somebodys_own_starts_from_the_priors_highest_noise():
    limited = FunctionPrior(lambda x, sigma: x, sigma_range=(0.0, 3.0))
    draws = sample(Walk(), likelihood(), limited, draws=4000, micro_batch=1000).draws
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(draws.std()) == pytest.approx(math.sqrt(9 + 3), rel=0.03)


class Set(Solver):
    """Inherits from the protocol and says it for each instance."""

    def __init__(self, stochastic: bool = True) -> None:
        self.stochastic = stochastic

    def iterate(self, likelihood, denoiser, x, random):
        yield random.normal(x)


@dataclasses.dataclass(frozen=True)
class Field(Solver):
    """The same as a setting."""

    stochastic: bool = True

    def iterate(self, likelihood, denoiser, x, random):
        yield random.normal(x)


@pytest.mark.parametrize("kind", [Set, Field])
def test_a_solver_may_inherit_from_the_protocol(kind):
    assert len(sample(kind(), likelihood(), prior(), draws=2).draws) == 2
    with pytest.raises(ValueError, match=f"{kind.__name__} gives one point estimate: ask for draws=1"):
        sample(kind(stochastic=False), likelihood(), prior(), draws=2)


def test_draws_come_back_in_the_shape_of_y():
    single = likelihood()
    assert sample(Walk(), single, prior(), draws=3).draws.shape == (3, *SHAPE)
    several = Likelihood(single.y.expand(2, *SHAPE), single.operator, single.noise)
    assert sample(Walk(), several, prior(), draws=3).draws.shape == (3, 2, *SHAPE)
    assert sample(Walk(), None, prior(), draws=3).draws.shape == (3, *SHAPE)
    assert sample(Walk(), None, lambda x, s: x, draws=3, in_shape=(3, 2, 2)).draws.shape == (3, 3, 2, 2)


def test_start_is_noised_and_denoised_from_its_level():
    """With an exact Gaussian denoiser, img2img from level s draws from p(x0 | x0 + s eps = start + s eps)."""
    start = torch.full(SHAPE, 0.9)
    low = sample(DPS(steps=50), None, prior(), draws=500, micro_batch=500, start=start, start_sigma=0.05).draws
    high = sample(DPS(steps=50), None, prior(), draws=500, micro_batch=500, start=start, start_sigma=5.0).draws
    assert abs(float(low.mean()) - 0.9) < 0.05
    assert abs(float(high.mean()) - 0.5) < 0.05
    assert torch.equal(start, torch.full(SHAPE, 0.9))


def test_start_of_a_point_solver_is_its_first_image():
    seen = []

    def watch(x, sigma):
        seen.append(x.clone())
        return x

    start = torch.full(SHAPE, 0.3)
    sample(PnPHQS(iterations=1, lam=1e9), likelihood(), watch, start=start)
    torch.testing.assert_close(seen[0][0], start, atol=1e-3, rtol=0)


def test_ctrl_c_keeps_the_finished_draws():
    def stop_in_the_third(step, x):
        calls.append(step)
        if len(calls) == 8:
            raise KeyboardInterrupt

    calls: list[int] = []
    with pytest.warns(UserWarning, match="Interrupted: 2 of 5 draws are finished and kept"):
        kept = sample(Walk(), likelihood(), prior(), draws=5, micro_batch=1, on_step=stop_in_the_third)
    whole = sample(Walk(), likelihood(), prior(), draws=5, micro_batch=1)
    assert torch.equal(kept.draws, whole.draws[:2])
    assert kept.record["interrupted"]
    assert kept.record["draws"] == 2
    calls[:] = [0] * 7
    with pytest.raises(KeyboardInterrupt):
        sample(Walk(), likelihood(), prior(), draws=5, micro_batch=1, on_step=stop_in_the_third)


@dataclasses.dataclass(frozen=True)
class Diverge(Walk):
    """Loses the members `bad` at the second of three steps."""

    bad: tuple[int, ...] = (1,)

    def iterate(self, likelihood, denoiser, x, random):
        for step, walked in enumerate(super().iterate(likelihood, denoiser, x, random), start=1):
            walked[list(self.bad), 0, 1, 1] = torch.nan if step >= 2 else 0.5
            yield walked


def test_a_draw_that_diverges_is_marked_and_the_others_go_on():
    with pytest.warns(UserWarning, match=r"^1 of 4 draws are not finite: Diverge di.* \(Draw 1 of measurement 0 at"):
        posterior = sample(Diverge(), likelihood(), prior(), draws=4, micro_batch=4)
    assert posterior.record["failed"] == [{"draw": 1, "measurement": 0, "step": 2}]
    assert posterior.draws[1].isnan().all()
    fine = posterior.draws[[0, 2, 3]]
    torch.testing.assert_close(fine[:, 0, 0], sample(Walk(), likelihood(), prior(), draws=4).draws[[0, 2, 3]][:, 0, 0])
    torch.testing.assert_close(posterior.mean(), fine.mean(0))
    torch.testing.assert_close(posterior.std(), fine.std(0))
    torch.testing.assert_close(posterior.quantile(0.5), fine.median(0).values)
    with pytest.raises(ValueError, match="needs at least 4 draws: this posterior has 3 that did not fail"):
        posterior.quantile(0.2)


def test_where_every_draw_diverges_one_is_named():
    @dataclasses.dataclass(frozen=True)
    class Guided(Diverge):
        zeta: float = 1.0

    said = "Draw 0 of measurement 0 is not finite: {} diverged at step 2; use {}"
    for solver, cure in (
        (Diverge(bad=(0, 1)), "more steps."),
        (Guided(bad=(0, 1)), "a smaller step (zeta) or more st"),
    ):
        with pytest.raises(FloatingPointError, match=re.escape(said.format(type(solver).__name__, cure))):
            sample(solver, likelihood(), prior(), draws=2, micro_batch=2)


@pytest.mark.parametrize(
    ("kind", "iterate", "yielded"),
    [
        (ValueError, lambda x: iter(()), "yielded nothing"),
        (TypeError, lambda x: None, "iterate returned NoneType and yielded nothing"),
        (TypeError, lambda x: x, "iterate returned Tensor and yielded nothing"),
        (TypeError, lambda x: [None], "yielded NoneType"),
        (TypeError, lambda x: [x, x.numpy()], "yielded ndarray"),
        (ValueError, lambda x: [x[:1]], "yielded a tensor of shape (1, 1, 4, 4)"),
        (ValueError, lambda x: [x[:, 0]], "yielded a tensor of shape (2, 4, 4)"),
    ],
)
def test_what_a_solver_yields_is_checked(kind, iterate, yielded):
    class Odd:
        stochastic = True

        def iterate(self, likelihood, denoiser, x, random):
            return iterate(x)

    with pytest.raises(kind, match=rf"^Odd.{re.escape(yielded)}: .* shape \(2, 1, 4, 4\), \(b, \*in_shape\)\.$"):
        sample(Odd(), likelihood(), prior(), draws=2, micro_batch=2)


@pytest.mark.parametrize(("keep", "expected"), [("one", "(2, 1, 4, 4), (b, *"), ("cloud", "(2, 3, 1, 4, 4), (b, part")])
def test_what_a_cloud_yields_is_checked(keep, expected):
    class Odd(CloudSolver):
        def iterate(self, likelihood, denoiser, x, random):
            yield x[:, :2]

    with pytest.raises(ValueError, match=re.escape(f"shape (2, 2, 1, 4, 4): expected tensors of shape {expected}")):
        sample(Odd(particles=3, keep=keep), likelihood(), prior(), micro_batch=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(monkeypatch):
    for stream, wanted, shown in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        sample(Walk(), likelihood(), prior(), draws=5, micro_batch=2, progress=wanted)
        assert ("5/5 draws" in stream.getvalue()) == shown


def test_the_default_micro_batch_depends_on_the_shape_alone():
    assert [default_micro_batch((3, n, n)) for n in (8, 64, 128, 256, 1024)] == [16, 16, 4, 1, 1]
    assert sample(Walk(), None, prior(), draws=2).record["micro_batch"] == 16


def test_the_prior_answers_in_the_likelihoods_dtype():
    wide = Likelihood(torch.full(SHAPE, 0.6, dtype=torch.float64), Identity(SHAPE), GaussianNoise(0.1))
    assert sample(DDRM(steps=5), wide, prior()).draws.dtype == torch.float64


def test_the_image_started_from_is_in_the_record():
    settings = {"draws": 1, "micro_batch": 1, "start_sigma": 0.2}
    images = [torch.full(SHAPE, value) for value in (0.2, 0.3)]
    records = [sample(DPS(steps=2), None, prior(), start=image, **settings).record for image in images]
    assert records[0]["start"] != records[1]["start"]
    assert records[0]["start"] == describe(images[0])
    assert records[0]["start_sigma"] == 0.2
    plain = sample(DPS(steps=2), None, prior()).record
    assert (plain["start"], plain["start_sigma"]) == (None, None)


@pytest.mark.parametrize(
    ("given", "drawn"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
def test_without_a_likelihood_draws_have_the_dtype_of_the_start(given, drawn):
    start = torch.full(SHAPE, 0.5, dtype=given)
    assert sample(DPS(steps=2), None, prior(), start=start, start_sigma=0.1).draws.dtype == drawn
    assert sample(DPS(steps=2), None, prior()).draws.dtype == torch.float32


def test_the_device_is_that_of_the_priors_network():
    """Tensors without storage stand for another device: a table beside the network does not say where it is."""
    network = nn.Conv2d(1, 1, 3)
    away = nn.Conv2d(1, 1, 3, device="meta")

    class Held(Prior):
        def __init__(self, *things: object) -> None:
            self.table, self.things = torch.zeros(2), things

        def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x

    assert held_on(FunctionPrior(away)).type == "meta"
    assert held_on(Held(away, network)).type == "meta"
    assert held_on(Held(FunctionPrior(away))).type == "meta"
    assert held_on(Held(torch.zeros(1, device="meta"))).type == "cpu"
    assert held_on(FunctionPrior(lambda x, sigma: x)).type == "cpu"
    assert held_on(GaussianPrior.power_law(SHAPE)).type == "cpu"


def test_a_prior_of_limited_range_goes_on_from_an_image_within_it():
    narrow = GaussianPrior.power_law(SHAPE)
    limited = FunctionPrior(narrow, name="limited", sigma_range=(0.02, 0.2), per_member=True)
    start = torch.full(SHAPE, 0.6)
    for solver in (Heun(steps=5), DPS(steps=5)):
        result = sample(solver, None, limited, draws=2, start=start, start_sigma=0.1)
        assert 0.01 < float((result.draws - 0.6).abs().mean()) < 0.3
        assert result.label == "uncalibrated spread"
        with pytest.raises(
            CapabilityError, match=r"cannot draw from the prior alone with limited, .* 0\.02 to 0\.2 on"
        ):
            sample(solver, None, limited, in_shape=SHAPE)
        with pytest.raises(CapabilityError, match=r"start_sigma is 0\.3: limited serves noise levels up to 0\.2"):
            sample(solver, None, limited, start=start, start_sigma=0.3)
        with pytest.raises(ValueError, match=r"start_sigma is 0\.01: expected the noise level, above 0\.02"):
            sample(solver, None, limited, start=start, start_sigma=0.01)


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        (TypeError, {"solver": "ddrm"}, "solver is str: expected an object with `iterate`"),
        (TypeError, {"solver": DDRM}, r"solver is the class DDRM: expected an instance, DDRM\(\)"),
        (TypeError, {"denoiser": "natural"}, r"load one with priors\.load\('natural'\)"),
        (TypeError, {"likelihood": torch.zeros(3)}, "likelihood is Tensor: expected Likelihood"),
        (ValueError, {"draws": 0}, "draws is 0: expected a whole number from 1 on"),
        (ValueError, {"draws": 2.0}, r"draws is 2\.0: expected"),
        (ValueError, {"seed": -1}, "seed is -1: expected"),
        (ValueError, {"micro_batch": 0}, "micro_batch is 0: expected"),
        (ValueError, {"in_shape": (1, 5, 5)}, r"in_shape is \(1, 5, 5\): the operator takes images of \(1, 4, 4\)"),
        (ValueError, {"start_sigma": 0.5}, r"start_sigma is 0\.5 without a start"),
        (ValueError, {"start": torch.zeros(SHAPE)}, "start_sigma is None: expected the noise level"),
        (ValueError, {"start": torch.zeros(2, 2), "start_sigma": 1.0}, r"start has shape \(2, 2\): expected"),
        (
            ValueError,
            {"start": torch.zeros(3, *SHAPE), "start_sigma": 1.0},
            r"expected \(1, 4, 4\) or \(1, 1, 4, 4\)\.",
        ),
        (
            TypeError,
            {"start": np.zeros(SHAPE), "start_sigma": 1.0},
            r"start is ndarray: expected an image as a real te",
        ),
        (TypeError, {"start": torch.zeros(SHAPE).cfloat()}, r"start is torch\.complex64: expected an image"),
        (
            ValueError,
            {"start": torch.zeros(SHAPE), "start_sigma": "0.1"},
            r"start_sigma is '0\.1': expected the noise le",
        ),
        (ValueError, {"start": torch.full(SHAPE, torch.nan), "start_sigma": 1.0}, "start holds values that are not"),
        (ValueError, {"likelihood": None, "denoiser": lambda x, s: x}, "in_shape is missing"),
        (CapabilityError, {"denoiser": GaussianPrior.power_law((1, 5, 5))}, r"of images of shape \(1, 5, 5\)"),
    ],
)
def test_wrong_use_is_refused_before_the_first_step(kind, change, sentence):
    settings = {"solver": DPS(steps=2), "likelihood": likelihood(), "denoiser": prior()} | change
    with pytest.raises(kind, match=sentence):
        sample(settings.pop("solver"), settings.pop("likelihood"), settings.pop("denoiser"), **settings)
