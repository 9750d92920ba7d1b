"""Clouds of particles: weights and resampling, cloud by cloud, and what `sample` makes of a solver that has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, clouds, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity, Mask
from invdiff.priors import GaussianPrior
from invdiff.priors.base import Prior
from invdiff.random import MemberRandom
from invdiff.sampling import default_micro_batch
from invdiff.solvers.base import CapabilityError
from invdiff.solvers.cloud import CloudSolver

SHAPE = (1, 4, 4)


def streams(n: int) -> MemberRandom:
    return MemberRandom(0, [(k, 0) for k in range(n)])


def weights_of(b: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(b, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@dataclass(frozen=True)
class Reweighted(CloudSolver):
    """The denoised start, weighted by the likelihood: enough to see what sample() does with a cloud."""

    steps: int = 3
    particles: int = 8

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        every = clouds.likelihood_of_particles(likelihood, self.particles)
        for step, sigma in enumerate(self.levels(denoiser)[:-1], start=1):
            x0 = clouds.denoise(denoiser, x, sigma)
            log_weights = every.log_prob(x0.flatten(0, 1)).reshape(x.shape[:2])
            x = x0 + sigma * 0.1 * random.normal(x)
            last = step == self.steps
            yield self.result(x, log_weights, random) if last else self.shown(x, log_weights)


def prior() -> GaussianPrior:
    return GaussianPrior.power_law(SHAPE)


def likelihood(measurements: int | None = None) -> Likelihood:
    y = prior().sample(measurements or 1, seed=1).float()
    return Likelihood(y if measurements else y[0], Identity(SHAPE), GaussianNoise(0.3))


def test_weights_and_their_effective_number():
    log_weights = torch.tensor([[0.0, 0.0, -1e5, -1e5], [3.0, -1e5, -1e5, -1e5], [7.0, 7.0, 7.0, 7.0]])
    torch.testing.assert_close(clouds.effective_size(log_weights), torch.tensor([2.0, 1.0, 4.0]).double())
    shifted = clouds.normalise(log_weights + torch.tensor([[1e3], [-1e3], [0.5]]))
    torch.testing.assert_close(shifted, clouds.normalise(log_weights))


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]])
def test_a_cloud_without_weights_fails_alone(bad):
    log_weights = torch.tensor([[0.0, -1.0], bad])
    weights = clouds.normalise(log_weights)
    torch.testing.assert_close(weights[:1], clouds.normalise(log_weights[:1]))
    assert weights[1].isnan().all()
    x = torch.arange(4.0).reshape(2, 2, 1)
    for kind in clouds.RESAMPLING:
        ancestors = clouds.resample(log_weights, streams(2), kind)
        assert (ancestors[1] == -1).all()
        assert torch.equal(ancestors[:1], clouds.resample(log_weights[:1], streams(1), kind))
        gathered = clouds.gather(x, ancestors)
        assert torch.equal(gathered[:1], clouds.gather(x[:1], ancestors[:1]))
        assert gathered[1].isnan().all()
    drawn = clouds.shuffled(x, log_weights, streams(2))
    assert torch.equal(drawn[:1], clouds.shuffled(x[:1], log_weights[:1], streams(1)))
    assert drawn[1].isnan().all()


def test_systematic_children_are_within_one_of_their_share():
    log_weights = weights_of(50, 37)
    ancestors = clouds.systematic(log_weights, streams(50))
    children = torch.zeros(50, 37).scatter_add_(1, ancestors, torch.ones(50, 37))
    assert ((children - 37 * clouds.normalise(log_weights)).abs() < 1 + 1e-9).all()
    assert (children.sum(1) == 37).all()


@pytest.mark.parametrize("kind", clouds.RESAMPLING)
def test_children_are_unbiased(kind):
    one = weights_of(1, 5)
    ancestors = clouds.resample(one.expand(20_000, 5), streams(20_000), kind)
    children = torch.stack([(ancestors == i).double().sum(1) for i in range(5)], 1)
    share = clouds.normalise(one)[0]
    torch.testing.assert_close(children.mean(0), 5 * share, atol=0.04, rtol=0)
    spread = 5 * share * (1 - share) if kind == "multinomial" else (5 * share % 1) * (1 - 5 * share % 1)
    torch.testing.assert_close(children.var(0), spread, atol=0.05, rtol=0)


def test_resampling_by_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="resampling is 'best': expected one of systematic, multinomial"):
        clouds.resample(weights_of(1, 3), streams(1), "best")


@pytest.mark.parametrize("pick", [clouds.systematic, clouds.multinomial])
def test_a_particle_without_weight_has_no_children(pick):
    log_weights = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(500, 4)
    assert set(pick(log_weights, streams(500)).flatten().tolist()) == {1, 2}


def test_a_cloud_does_not_feel_its_neighbours():
    log_weights, x = weights_of(4, 16), weights_of(4, 16, seed=1)[..., None]
    together = clouds.shuffled(x, log_weights, streams(4))
    alone = clouds.shuffled(x[2:3], log_weights[2:3], MemberRandom(0, [(2, 0)]))
    assert torch.equal(together[2:3], alone)


def test_a_shuffled_cloud_is_resampled_and_its_order_says_nothing():
    x = torch.arange(64.0).expand(200, 64)[..., None]
    out = clouds.shuffled(x, torch.zeros(200, 64), streams(200))[..., 0]
    assert torch.equal(out.sort(1).values, x[..., 0])
    assert (out[:, :8].mean(1) - 31.5).mean().abs() < 2


def test_every_place_of_a_shuffled_cloud_is_drawn_by_weight():
    one = weights_of(1, 5)
    x = torch.arange(5.0).expand(20_000, 5)[..., None]
    out = clouds.shuffled(x, one.expand(20_000, 5), streams(20_000))[..., 0]
    for place in (0, 4):
        share = torch.stack([(out[:, place] == i).double().mean() for i in range(5)])
        torch.testing.assert_close(share, clouds.normalise(one)[0], atol=0.015, rtol=0)


def test_the_members_own_operators_go_with_their_particles():
    mask = (torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    own = Likelihood(mask * 0.3, Mask(mask, SHAPE), GaussianNoise(torch.tensor([0.1, 0.4]).reshape(2, 1, 1, 1)))
    x = torch.rand(2, 5, *SHAPE, generator=torch.Generator().manual_seed(1))
    together = clouds.likelihood_of_particles(own, 5).log_prob(x.flatten(0, 1)).reshape(2, 5)
    for j in range(2):
        torch.testing.assert_close(together[j], own.take(torch.tensor([j])).log_prob(x[j]))


def test_one_draw_of_every_cloud_by_default():
    few = sample(Reweighted(), likelihood(), prior(), draws=3, micro_batch=2)
    many = sample(Reweighted(), likelihood(), prior(), draws=5, micro_batch=2)
    assert many.draws.shape == (5, *SHAPE)
    assert torch.equal(few.draws, many.draws[:3])
    assert not many.dependent
    assert many.label == "uncalibrated spread"
    assert (many.record["cloud"], many.record["dependent"]) == (8, False)
    assert many.record["nfe"] == 3 * 8


@pytest.mark.parametrize("measurements", [None, 3])
def test_all_particles_of_a_cloud_are_dependent_draws(measurements, tmp_path):
    solver, given = Reweighted(keep="cloud"), likelihood(measurements)
    some = sample(solver, given, prior(), draws=11, micro_batch=2)
    more = sample(solver, given, prior(), draws=24, micro_batch=2)
    assert some.draws.shape == ((11, *SHAPE) if measurements is None else (11, 3, *SHAPE))
    assert torch.equal(some.draws, more.draws[:11])
    assert (more.record["cloud"], more.record["dependent"], more.record["nfe"]) == (8, True, 3)
    more.save(tmp_path / "draws.safetensors")
    for posterior in (more, Posterior.load(tmp_path / "draws.safetensors")):
        assert posterior.dependent
        assert posterior.label == "uncalibrated spread of dependent draws"
    # The one draw that a cloud gives by default is the first of its particles.
    ones = sample(replace(solver, keep="one"), given, prior(), draws=3, micro_batch=2).draws
    assert torch.equal(ones, more.draws[::8])


def test_steps_are_shown_as_they_come_back():
    for keep, inside in (("one", SHAPE), ("cloud", (8, *SHAPE))):
        seen = []
        settings = {"on_step": lambda step, x, seen=seen: seen.append(tuple(x.shape)), "micro_batch": 2}
        sample(Reweighted(keep=keep), likelihood(), prior(), draws=2, **settings)
        assert seen == [(2, *inside)] * 3


def test_clouds_that_are_finished_are_kept_when_interrupted():
    calls = []

    def interrupt(step: int, x: Tensor) -> None:
        calls.append(step)
        if len(calls) == 8:
            raise KeyboardInterrupt

    settings = {"micro_batch": 1, "draws": 32, "progress": False}
    with pytest.warns(UserWarning, match="16 of 32 draws are finished and kept"):
        some = sample(Reweighted(keep="cloud"), likelihood(), prior(), on_step=interrupt, **settings)
    assert torch.equal(some.draws, sample(Reweighted(keep="cloud"), likelihood(), prior(), **settings).draws[:16])
    assert (some.record["draws"], some.record["interrupted"], some.record["nfe"]) == (16, True, 3)


def test_a_cloud_goes_on_from_an_image():
    image = torch.full(SHAPE, 0.3)
    settings = {"start": image, "start_sigma": 0.01, "micro_batch": 1}
    draws = sample(Reweighted(keep="cloud"), likelihood(), prior(), draws=8, **settings).draws
    assert draws.shape == (8, *SHAPE)
    assert (draws - 0.3).abs().max() < 0.1
    assert draws.std(0).min() > 0


def test_a_prior_of_limited_range_starts_every_particle_from_the_regularised_inverse():
    limited = prior()
    limited.sigma_range = (0.0, 0.05)
    y = torch.full(SHAPE, 0.9)
    given = Likelihood(y, Identity(SHAPE), GaussianNoise(0.01))
    x = Reweighted(particles=500).start(given, limited, torch.empty(1, 500, *SHAPE), streams(1))
    torch.testing.assert_close(x.mean((0, 1)), given.prox(torch.full((1, *SHAPE), 0.5), 16.0)[0], atol=0.02, rtol=0)


def test_the_default_micro_batch_counts_particles():
    assert [default_micro_batch((3, 64, 64), n) for n in (1, 8, 64)] == [16, 2, 1]
    assert sample(Reweighted(particles=4096), likelihood(), prior()).record["micro_batch"] == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"particles": 0}, "particles of Reweighted is 0: expected a whole number from 1 on"),
        ({"keep": "all"}, r"keep of Reweighted is 'all': expected 'one' \(one draw per cloud\) or 'cloud'"),
        ({"resampling": "best"}, "resampling of Reweighted is 'best': expected one of systematic, multinomial"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Reweighted(**settings)
    assert not isinstance(caught.value, CapabilityError)
