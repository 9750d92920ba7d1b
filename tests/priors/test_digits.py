"""A third-party DDPM of digits draws digits and restores half-masked ones better than every smoother."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Mask
from invdiff.priors import load
from invdiff.solvers import DDIM, KPS, PnPADMM
from tests.priors.mnist_ddpm import digits, digits_prior

SMOOTHERS = ("gaussian", "median", "bilateral", "wavelet", "tv", "nlm")


@pytest.fixture(scope="module")
def prior(data: Path) -> Any:
    return digits_prior(data / "weights" / "ddpm_mnist" / "sdaloglu_ddpm_mnist.pth", precision="float32")


def test_it_draws_strokes_on_black(prior: Any, data: Path) -> None:
    posterior = sample(
        DDIM(steps=30, eta=1.0), None, prior, draws=8, in_shape=(1, 28, 28), micro_batch=8, progress=False
    )
    drawn, real = torch.as_tensor(np.asarray(posterior.draws)).reshape(-1, 28, 28), digits(data, 200)[:, 0]
    assert float(drawn[:, :3].abs().mean()) < 0.1  # nothing is written at the margin
    assert 0.5 < float((drawn > 0.5).float().mean() / (real > 0.5).float().mean()) < 2
    # Strokes hang together: two neighbours agree as in real digits, and not as in noise of the same ink.
    assert neighbours(drawn) > 0.6 * neighbours(real) > 0.3


def neighbours(images: Tensor) -> float:
    ink = (images > 0.5).float()
    centred = ink - ink.mean()
    return float((centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean())


@pytest.mark.parametrize(("mask", "gain"), [("half of the pixels", 1.5), ("right half", 1.3)])
def test_half_masked_digits_are_restored_better_than_by_every_smoother(
    prior: Any, data: Path, mask: str, gain: float
) -> None:
    truth = digits(data, 4)
    kept = torch.ones(1, 28, 28)
    if mask == "right half":
        kept[..., 14:] = 0
    else:
        kept = (torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    operator = Mask(kept, (1, 28, 28))
    clean = operator(truth)
    y = clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    likelihood = Likelihood(y, operator, GaussianNoise(0.02))

    def psnr(solver: Any, prior: Any, draws: int) -> float:
        posterior = sample(solver, likelihood, prior, draws=draws, micro_batch=4 * draws, progress=False)
        mean = torch.as_tensor(np.asarray(posterior.mean())).reshape(truth.shape).clamp(0, 1)
        return float(-10 * (mean - truth).square().flatten(1).mean(1).log10().mean())

    best = max(psnr(PnPADMM(), load(name), 1) for name in SMOOTHERS)
    assert psnr(KPS(), prior, 4) > best + gain
