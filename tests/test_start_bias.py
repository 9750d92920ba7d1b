"""The bias of a finite sigma_max: the closed form is that of the samplers, and the FFT prior is what it says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmarks import start_bias
from benchmarks.samplers import propagate
from invdiff import solvers
from invdiff.images import write_image
from invdiff.random import MemberRandom


@pytest.mark.parametrize("sigma", [10.0, 40.0])
@pytest.mark.parametrize(("name", "closed"), [("heun", start_bias.ode), ("pf_ode", start_bias.ode)])
def test_the_ode_leaves_a_share_of_the_start(name, closed, sigma):
    lam, prior_mean = 75.0**2, torch.tensor([0.1], dtype=torch.float64)
    solver = dataclasses.replace(solvers.load(name, steps=60), sigma_max=sigma)
    mean, variance = propagate(solver, prior_mean, torch.tensor([lam], dtype=torch.float64))
    share, ratio = closed(lam, sigma)
    assert math.sqrt(float(variance) / lam) == pytest.approx(ratio, rel=4e-3)
    assert float(mean - 0.1) / 0.4 == pytest.approx(share, rel=4e-3)


@pytest.mark.parametrize("sigma", [10.0, 40.0])
def test_the_sde_forgets_more_of_it(sigma):
    lam, prior_mean = 75.0**2, torch.tensor([0.1], dtype=torch.float64)
    solver = solvers.DPMppSDE(steps=200, sigma_max=sigma)
    mean, variance = propagate(solver, prior_mean, torch.tensor([lam], dtype=torch.float64))
    share, ratio = start_bias.sde(lam, sigma)
    assert math.sqrt(float(variance) / lam) == pytest.approx(ratio, rel=1e-2)
    assert float(mean - 0.1) / 0.4 == pytest.approx(share, rel=1e-2)
    assert ratio > start_bias.ode(lam, sigma)[1]


def test_the_fft_prior_is_an_exact_denoiser_with_the_measured_mean(monkeypatch):
    """Noise goes, images of the prior stay, and the mean brightness is shrunk by lambda / (lambda + sigma^2)."""
    monkeypatch.setattr(start_bias, "SIDE", 16)
    prior = start_bias.stationary()
    assert float(start_bias.spectrum()[0, 0, 0]) == pytest.approx((0.295 * 16) ** 2)
    assert float(start_bias.spectrum()[:, 0, 1].sum() / start_bias.spectrum()[:, 0, 2].sum()) == pytest.approx(4.0)
    x = 0.41 + MemberRandom(0, [(0, 0), (1, 0)]).normal(torch.empty(2, 3, 16, 16))
    before, after = start_bias.brightness(x - 0.41), start_bias.brightness(prior(x, 2.0) - 0.41)
    lam = (0.295 * 16) ** 2
    torch.testing.assert_close(after, before * lam / (lam + 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior(x, 1e-4), x, rtol=0, atol=1e-3)


def test_the_figures_of_a_folder_are_measured(tmp_path, capsys, monkeypatch):
    """Two images whose figures are counted by hand: only the middle of the larger one counts, and gray is a colour."""
    monkeypatch.setattr(start_bias, "SIDE", 4)
    wide = torch.zeros(3, 4, 8)
    wide[:, :, 2:6] = torch.tensor([1.0, 0.6, 0.2])[:, None, None]
    write_image(tmp_path / "wide.png", wide)
    halves = torch.zeros(1, 2, 2)
    halves[:, 0] = 0.8
    write_image(tmp_path / "gray.png", halves)
    (tmp_path / "notes.txt").write_text("no image")
    found = start_bias.measure(tmp_path)
    assert found["images"] == 2
    assert found["MEAN"] == pytest.approx((0.6 + 0.4) / 2)
    # The std of two numbers is their distance over sqrt 2: 0.6 and 0.4 sqrt 3, 0.8 / sqrt 2 and 0, 0 and 0.
    assert found["COLOUR_STDS"] == pytest.approx((0.2 * math.sqrt(1.5), 0.4, 0.0), abs=1e-6)
    assert found["PIXEL_STD"] == pytest.approx(math.sqrt(0.4**2 / 2))
    monkeypatch.setattr("sys.argv", ["start_bias", "--measure", str(tmp_path)])
    start_bias.main()
    assert capsys.readouterr().out == "2 images: MEAN 0.5000, COLOUR_STDS 0.2449, 0.4000, 0.0000, PIXEL_STD 0.2828\n"
    (tmp_path / "gray.png").unlink()
    with pytest.raises(SystemExit, match="holds 1 images: expected at least 2"):
        start_bias.measure(tmp_path)
