"""The barrier of the Poisson prox: whom it is for, and what it costs."""

from __future__ import annotations

import torch

from invdiff import Likelihood
from invdiff.noise import PoissonNoise
from invdiff.operators import Blur, Matrix, gaussian_psf


def test_a_member_that_needs_no_barrier_is_asked_for_no_start_of_one():
    # The first row is positive at the first member's z alone, where the second is not, and neither need be.
    operator = Matrix(torch.tensor([[1.0, -20.0], [1.0, 1.0], [3.0, 1.0]], dtype=torch.float64))
    y = torch.tensor([[6.25, 0.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[0.25, -0.3], [-20.0, -30.0]], dtype=torch.float64)
    both = Likelihood(y, operator, PoissonNoise(0.1)).prox(z, 5.0)
    for j in range(2):
        alone = Likelihood(y[j], operator, PoissonNoise(0.1)).prox(z[j : j + 1], 5.0)
        torch.testing.assert_close(both[j : j + 1], alone, atol=1e-9, rtol=0)
    assert bool((operator(both)[:, 1:] >= 0).all())


def test_the_barrier_asks_for_a_third_of_the_passes_of_exact_newton_steps(monkeypatch):
    operator, gain = Blur(gaussian_psf(1.5), (1, 32, 32)), 0.5
    x = torch.zeros(1, 32, 32)
    x[:, 8:16, 8:16] = 0.8
    generator = torch.Generator().manual_seed(0)
    y = gain * torch.poisson(operator(x[None])[0].clamp_min(0) / gain, generator=generator)
    z = (x + 0.1 * torch.randn(x.shape, generator=generator))[None]
    calls = [0]
    kind = type(operator)
    forward = kind.forward

    def counted(self, image):
        calls[0] += 1
        return forward(self, image)

    monkeypatch.setattr(kind, "forward", counted)
    found = Likelihood(y, operator, PoissonNoise(gain)).prox(z, 100.0)
    assert float(forward(operator, found).min()) >= 0
    assert calls[0] < 1500
