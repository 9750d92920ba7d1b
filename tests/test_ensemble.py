"""Draw k of seed s is one thing, however it is computed and whatever becomes of its neighbours."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invdiff import Likelihood, Posterior, sample, solvers
from invdiff.ensemble import SCHEME, Block, Ensemble
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Identity, Mask, from_function, gaussian_psf
from invdiff.priors import GaussianPrior
from invdiff.priors.base import Prior
from invdiff.random import MemberRandom
from invdiff.solvers import DDRM
from invdiff.solvers.cloud import CloudSolver

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior.power_law(SHAPE)
NAMES = sorted(solvers.names())
SAMPLERS = [name for name in NAMES if solvers.load(name).stochastic]
ALONE = [name for name in NAMES if isinstance(solvers.load(name), solvers.PriorSampler)]


UNIFORM = [
    [0.13016098737716675, 0.8172805309295654],
    [0.5167286992073059, 0.3939949870109558],
    [0.9534565806388855, 0.05417633056640625],
]
NORMAL = [
    [-0.41497260332107544, 0.25712859630584717],
    [0.6478515267372131, -0.9503579139709473],
    [0.41029804944992065, 0.32821232080459595],
]
OTHER = [0.890181839466095, 0.1415954828262329]
GOLDEN = {
    "ddrm": [[0.5557887554168701, 0.5479552745819092], [0.5173224210739136, 0.4952428340911865]],
    "kps": [[0.40971770882606506, 0.4159580171108246], [0.38687047362327576, 0.35223525762557983]],
    "tds": [[0.38362812995910645, 0.3461962640285492], [0.3762989640235901, 0.3560194671154022]],
    "heun": [[0.43004193902015686, -0.09637491405010223], [0.814795732498169, -0.15494656562805176]],
}


class Reweighing(CloudSolver):
    """Clouds of 3 that all come back."""

    def iterate(self, likelihood, denoiser, x, random):
        for _ in range(2):
            x = x + random.normal(x)
            yield x


def measured(measurements: int | None = None) -> Likelihood:
    y = PRIOR.sample(measurements or 1, seed=1).float()
    return Likelihood(y if measurements else y[0], Identity(SHAPE), GaussianNoise(0.1))


def quick(name: str) -> solvers.Solver:
    solver = solvers.load(name)
    known = {field.name for field in dataclasses.fields(solver)}
    small = {"steps": 4, "iterations": 4, "particles": 4, "prior_steps": 4, "ode_steps": 1, "langevin_steps": 3}
    if solver.stochastic:
        small.pop("iterations")
    return dataclasses.replace(solver, **{key: value for key, value in small.items() if key in known})


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_draw_has_the_same_bits_for_any_number_of_draws_and_pieces(data):
    likelihood = measured(data.draw(st.sampled_from([None, 1, 2, 3, 5]), "measurements"))
    solver = data.draw(st.sampled_from([DDRM(steps=3), Reweighing(steps=2, particles=3, keep="cloud")]), "solver")
    micro_batch = data.draw(st.sampled_from([None, 1, 2, 3, 4, 7]), "micro_batch")
    seed = data.draw(st.integers(0, 3), "seed")
    pieces = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=3), "pieces")

    def run(draws: int, **keep) -> Tensor:
        return sample(solver, likelihood, PRIOR, draws=draws, seed=seed, micro_batch=micro_batch, **keep).draws

    whole = run(13)
    with tempfile.TemporaryDirectory() as folder:
        for draws in pieces:
            assert torch.equal(run(draws), whole[:draws])
            assert torch.equal(run(draws, store=f"{folder}/run"), whole[:draws])
        kept = Posterior.load(f"{folder}/run")
        assert torch.equal(kept.draws, whole[: max(pieces)])


@settings(max_examples=50, deadline=None)
@given(
    measurements=st.integers(1, 9), size=st.integers(1, 9), draws=st.integers(1, 20), kept=st.sampled_from([None, 1, 3])
)
def test_micro_batches_cover_every_draw_of_every_measurement_once(measurements, size, draws, kept):
    solver = DDRM() if kept is None else Reweighing(particles=kept, keep="cloud")
    shape = SHAPE
    ensemble = Ensemble(solver, measured(measurements), PRIOR, 0, shape, size, torch.float32, torch.device("cpu"))
    down, across = ensemble.grid
    assert 1 <= down * across <= size
    count = np.zeros((draws, measurements), int)
    for block in ensemble.blocks(draws):
        place = ensemble.place(block, draws)
        assert count[place].size
        count[place] += 1
    assert (count == 1).all()
    assert ensemble.blocks(draws) == ensemble.blocks(draws + 7)[: len(ensemble.blocks(draws))]


def test_one_micro_batch_alone_is_what_it_is_among_others():
    ensemble = Ensemble(
        DDRM(steps=3),
        measured(3),
        PRIOR,
        5,
        SHAPE,
        4,
        torch.float32,
        torch.device("cpu"),
        threads=torch.get_num_threads(),
    )
    whole = sample(DDRM(steps=3), measured(3), PRIOR, draws=4, seed=5, micro_batch=4).draws
    assert torch.equal(ensemble.run(Block(2, 0)).draws, whole[2:3])


def test_golden_random_numbers():
    """Numbers that no later version may change, or draws of the same seed would be others: count SCHEME up if so."""
    streams = MemberRandom(0, [(0, 0), (1, 0), (0, 1)])
    like = torch.empty(3, 2)
    assert streams.uniform(like).tolist() == UNIFORM
    torch.testing.assert_close(streams.normal(like), torch.tensor(NORMAL), rtol=1e-6, atol=0)
    assert MemberRandom(12345, [(7, 3)]).uniform(like[:1]).tolist() == [OTHER]
    assert SCHEME == 2


@pytest.mark.parametrize("name", ["ddrm", "kps", "tds", "heun"])
def test_golden_draws(name):
    """Draws 0 and 2 of measurement 1 as they came out first."""
    given = None if name in ALONE else measured(2)
    draws = sample(quick(name), given, PRIOR, draws=3, seed=3, micro_batch=4).draws
    drawn = draws[[0, 2], 1, 0, 1, :2] if given else draws[[0, 2], 0, 1, :2]
    torch.testing.assert_close(drawn, torch.tensor(GOLDEN[name]), rtol=1e-5, atol=1e-6)


class Poisoned(Prior):
    """Spoils one of 4 members from some call on: all particles of its cloud, or one of them."""

    def __init__(self, member: int | None, particles: int | None = None, value: float = torch.nan, once: bool = False):
        self.member, self.particles, self.value, self.once, self.calls = member, particles, value, once, 0
        self.name, self.in_shape = "poisoned", SHAPE

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        x0 = PRIOR.denoise(x, sigma)
        if self.member is None or self.calls < 2 or (self.once and self.calls > 2):
            return x0
        per = len(x) // 4
        first = self.member * per
        factor = torch.ones(len(x))
        factor[first : first + (self.particles or per)] = self.value
        return x0 * factor.reshape(-1, 1, 1, 1)


def spoiled(solver: solvers.Solver, given: Likelihood | None, **how) -> None:
    """One member fails, is marked, and its neighbours do not feel it."""
    draws = 4 if solver.stochastic else 1

    def run(member: int | None) -> Posterior:
        return sample(solver, given, Poisoned(member, **how), draws=draws, micro_batch=4)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = run(None), run(1)
    assert not expected.record["failed"]
    (failed,) = found.record["failed"]
    assert (failed["draw"], failed["measurement"]) == ((1, 0) if solver.stochastic else (0, 1))
    # The members stand along the draws, or along the measurements of a point estimate.
    one, other = (posterior.draws.flatten(0, posterior.draws.ndim - 4) for posterior in (expected, found))
    assert other[1].isnan().all()
    torch.testing.assert_close(other[[0, 2, 3]], one[[0, 2, 3]], rtol=0, atol=1e-6)


def problems(name: str) -> Likelihood | None:
    count = None if name in SAMPLERS else 4
    mask = (torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    y = PRIOR.sample(count or 1, seed=1).float()
    operator = Mask(mask, SHAPE)
    y = operator(y)
    return None if name in ALONE else Likelihood(y if count else y[0], operator, GaussianNoise(0.1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{}, {"once": True}, {"once": True, "value": torch.inf}], ids=["on", "once", "inf"])
def test_a_member_that_fails_is_marked_and_its_neighbours_do_not_feel_it(name, how):
    spoiled(quick(name), problems(name), **how)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if hasattr(quick(name), "particles")])
@pytest.mark.parametrize("once", [False, True])
def test_one_particle_that_fails_fails_its_cloud_alone(name, once):
    spoiled(quick(name), problems(name), particles=1, once=once)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*ALONE}))
@pytest.mark.parametrize("kind", ["no svd", "poisson", "nonlinear", "per pixel"])
def test_a_member_that_fails_whatever_the_problem(name, kind):
    blur = Blur(gaussian_psf(0.6, 3), SHAPE, boundary="reflect")
    operator, noise = {
        "no svd": (blur, GaussianNoise(0.1)),
        "poisson": (blur, PoissonNoise(0.05)),
        "nonlinear": (from_function(lambda x: x + x**2 / 4, SHAPE, linear=False), GaussianNoise(0.1)),
        "per pixel": (Identity(SHAPE), GaussianNoise(torch.full(SHAPE, 0.1))),
    }[kind]
    y = operator(PRIOR.sample(1 if name in SAMPLERS else 4, seed=1).float().clamp_min(0.1))
    given = Likelihood(y[0] if name in SAMPLERS else y, operator, noise)
    try:
        quick(name).check(given, PRIOR)
    except solvers.CapabilityError as refused:
        pytest.skip(str(refused))
    spoiled(quick(name), given)
