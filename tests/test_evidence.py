"""The log-likelihood by the probability-flow ODE against priors whose density is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import evidence
from invdiff.evidence import Evidence, log_prob
from invdiff.priors import FunctionPrior, GaussianMixturePrior, GaussianPrior
from invdiff.random import MemberRandom
from invdiff.record import describe
from invdiff.solvers import CapabilityError

SHAPE = (1, 4, 4)


def gaussian() -> GaussianPrior:
    return GaussianPrior.power_law(SHAPE)


def mixture() -> GaussianMixturePrior:
    means = torch.tensor([[0.2, 0.3], [0.8, 0.5], [0.4, 0.9]])
    return GaussianMixturePrior(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.003, 0.01, 0.002]))


def exact(prior: GaussianPrior | GaussianMixturePrior, x: Tensor, sigma: float) -> Tensor:
    """log density of x0 + sigma eps."""
    return prior.mixture.log_components(x, sigma**2).logsumexp(1)


@pytest.mark.parametrize(("prior", "error"), [(gaussian(), 3e-3), (mixture(), 4e-3)], ids=["gaussian", "mixture"])
def test_the_exact_trace_gives_the_exact_density(prior, error):
    """Off by what starting from white noise at sigma 40 costs, and the density is that at sigma_min."""
    x = prior.sample(4)
    found = log_prob(prior, x, probes=None, steps=40)
    torch.testing.assert_close(found.nats, exact(prior, x, 0.002), atol=error, rtol=0)
    torch.testing.assert_close(found.nats, prior.log_prob(x), atol=2 * error, rtol=0)
    assert found.sigma_min == pytest.approx(0.002)
    assert bool((found.standard_error == 0).all())
    assert found.latent.shape == x.shape
    assert float(found.latent.std()) > 10


def test_more_steps_converge_with_the_fourth_order():
    prior = gaussian()
    x = prior.sample(1)
    errors = [float(log_prob(prior, x, probes=None, steps=steps).nats - exact(prior, x, 0.002)) for steps in (15, 30)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.4)


def test_probes_are_unbiased_and_their_standard_error_is_honest():
    prior = gaussian()
    x = prior.sample(1).expand(64, *SHAPE)
    found = log_prob(prior, x, steps=40, probes=8)
    error = found.nats - exact(prior, x, 0.002)
    assert abs(float(error.mean())) < 4 * float(error.std()) / 8
    assert float(error.std()) == pytest.approx(float(found.standard_error.square().mean().sqrt()), rel=0.3)
    assert bool(torch.isnan(log_prob(prior, x[:2], steps=10).standard_error).all())


def test_a_member_depends_neither_on_its_batch_nor_on_the_global_state(global_random_state_is_untouched):
    prior = mixture()
    x = prior.sample(5)
    kept = x.clone()
    whole = log_prob(prior, x, steps=10, probes=2, seed=3)
    split = log_prob(prior, x, steps=10, probes=2, seed=3, micro_batch=2)
    torch.testing.assert_close(split.nats, whole.nats, atol=1e-9, rtol=0)
    few = log_prob(prior, x[:3], steps=10, probes=2, seed=3)
    torch.testing.assert_close(few.nats, whole.nats[:3], atol=1e-9, rtol=0)
    other = log_prob(prior, x, steps=10, probes=2, seed=4)
    assert float((other.nats - whole.nats).abs().min()) > 1e-6
    assert torch.equal(x, kept)


def test_bits_per_dimension_are_of_images_in_0_to_255():
    """A uniform density over 256 grey levels would need 8 bits; a Gaussian one log2(sqrt(2 pi e) 255 std)."""
    prior = GaussianPrior(torch.full((4,), 0.5), 0.04 * torch.eye(4))
    x = prior.sample(2000, seed=2)
    found = log_prob(prior, x, steps=20, probes=None, micro_batch=500)
    assert float(found.bits_per_dim.mean()) == pytest.approx(
        math.log2((2 * math.pi * math.e) ** 0.5 * 255 * 0.2), abs=0.03
    )
    flat = Evidence(torch.zeros(1).double(), torch.ones(1).double(), torch.zeros(1, 2, 2), 1, 0.002, 40.0)
    assert float(flat.bits_per_dim) == pytest.approx(math.log2(255))
    assert float(flat.bits_error) == pytest.approx(1 / 4 / math.log(2))


def test_dequantizing_spreads_bytes_over_their_bins():
    """The mean over the bin of a density much wider than a bin is the density; a member's noise is its own."""
    prior = GaussianPrior(torch.full((2,), 0.5), 0.01 * torch.eye(2))
    x = torch.full((400, 2), 150 / 255, dtype=torch.float64)
    found = log_prob(prior, x, steps=20, probes=None, dequantize=True, micro_batch=400)
    plain = log_prob(prior, x[:1], steps=20, probes=None)
    assert float(found.nats.mean()) == pytest.approx(float(plain.nats), abs=0.02)
    # Uniform in +-1/510 along the slope of the log density: its std is slope / (255 sqrt(12)) for each of the two.
    slope = (150 / 255 - 0.5) / 0.01
    assert float(found.nats.std()) == pytest.approx(slope / 255 / 12**0.5 * 2**0.5, rel=0.15)


def test_images_of_the_prior_are_likelier_than_noise_for_a_network_in_float32():
    prior = gaussian()
    x = torch.cat([prior.sample(3), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()]).float()
    found = log_prob(prior, x, steps=30, probes=4)
    assert float(found.nats[:3].min()) > float(found.nats[3:].max())
    torch.testing.assert_close(found.nats, exact(prior, x, 0.002), atol=1.0, rtol=0)


def test_probes_are_not_the_noise_of_draws_of_the_same_seed(monkeypatch):
    probes: list[Tensor] = []

    class Watched(MemberRandom):
        def normal(self, like: Tensor) -> Tensor:
            probes.append(super().normal(like))
            return probes[-1]

    monkeypatch.setattr(evidence, "MemberRandom", Watched)
    log_prob(gaussian(), torch.zeros(2, *SHAPE), steps=1, seed=3)
    for member in (0, 1):
        for draw in (0, 1):
            noise = MemberRandom(3, [(draw, 0)]).normal(probes[0][:1])[0]
            assert float((probes[0][member] - noise).abs().max()) > 0.1


def test_what_ran_is_recorded_in_json():
    x = torch.zeros(1, *SHAPE)
    prior = FunctionPrior(lambda x, sigma: x / (1 + sigma**2), name="shrink", sigma_range=(0.0, 40.0))
    found = log_prob(prior, x, steps=2, probes=np.int64(3), seed=np.int64(7), dequantize=True, micro_batch=5)
    record = json.loads(json.dumps(found.record, allow_nan=False))
    expected = {"seed": 7, "probes": 3, "steps": 2, "sigma_min": pytest.approx(0.002), "sigma_max": pytest.approx(40.0)}
    assert record == expected | {
        "dequantize": True,
        "micro_batch": 5,
        "prior": describe(prior) | {"sigma_range": [0, 40]},
    }
    assert log_prob(gaussian(), x, steps=1, probes=None).record["probes"] is None


def test_the_prior_goes_where_the_images_are():
    asked = []

    class Elsewhere(GaussianPrior):
        def to(self, device=None, dtype=None, **options):
            asked.append(device)
            return gaussian()

        def denoise(self, x, sigma):
            raise AssertionError("the prior was not moved")

    x = torch.zeros(1, *SHAPE)
    found = log_prob(Elsewhere.power_law(SHAPE), x, steps=2)
    assert asked == [x.device]
    torch.testing.assert_close(found.nats, log_prob(gaussian(), x, steps=2).nats)


def test_it_is_shown_in_one_line_of_few_digits():
    one = torch.ones(6).double()
    shown = repr(Evidence(1234.56789 * one, 1.23456 * one, torch.zeros(6, 3, 4, 5), 60, 0.002, 40.0))
    assert shown.startswith("Evidence(nats=[1234.57 ± 1.2, 1234.57 ± 1.2, 1234.57 ± 1.2, 1234.57 ± 1.2, ...], bits_p")
    assert shown.endswith("image (3, 4, 5), sigma 0.002 to 40 in 60 steps)")
    assert "±" not in repr(Evidence(one, torch.nan * one, torch.zeros(6, 2), 60, 0.002, 40.0))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(1, *SHAPE, dtype=torch.uint8)}, r"x is of torch\.uint8: expected .* x\.float\(\) / 255"),
        ({"x": np.zeros((1, *SHAPE))}, "x is ndarray: expected a tensor of floats"),
        (
            {"prior": FunctionPrior(lambda x, s: x, name="stiff", differentiable=False)},
            "stiff cannot be differentiated",
        ),
        (
            {"prior": FunctionPrior(lambda x, s: x, name="low", sigma_range=(0.0, 0.5))},
            "low serves noise levels from 0",
        ),
        ({"prior": FunctionPrior(lambda x, s: x, name="high", sigma_range=(0.2, 50.0))}, "high serves noise levels fr"),
        ({"sigma_max": 3.0}, r"noise of at least 10 \(here 3\)"),
        ({"sigma_min": 0.0}, r"sigma_min is 0\.0"),
        ({"probes": 0}, "probes is 0: expected a whole number from 1 on, or None for the exact trace"),
        ({"micro_batch": 0}, "micro_batch is 0: expected a whole number from 1 on"),
        ({"micro_batch": -2}, "micro_batch is -2: expected a whole number from 1 on"),
        ({"micro_batch": 1.5}, r"micro_batch is 1\.5: expected"),
        ({"steps": 2.5}, r"steps is 2\.5: expected a whole number from 1 on"),
        ({"seed": -1}, "seed is -1: expected"),
        ({"x": torch.full((1, *SHAPE), torch.nan)}, r"x of shape \(1, 1, 4, 4\) is no batch of finite images"),
        ({"x": torch.zeros(1, 3, 64, 64), "probes": None}, "12288 values is too large for the exact trace"),
    ],
)
def test_wrong_use_is_refused_in_a_sentence(change, sentence):
    settings = {"prior": gaussian(), "x": torch.zeros(1, *SHAPE), "steps": 2} | change
    kind = CapabilityError if "prior" in change or "sigma_max" in change else (ValueError, TypeError)
    with pytest.raises(kind, match=sentence):
        log_prob(settings.pop("prior"), settings.pop("x"), **settings)
