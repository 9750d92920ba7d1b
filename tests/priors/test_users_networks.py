"""What a user writes for published networks that the package does not know, and a tiny ADM trained here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff.priors import from_network, load
from invdiff.priors.adm import ADM
from invdiff.priors.base import FunctionPrior
from invdiff.priors.weights import load_state_dict
from invdiff.process import VE, Discrete, VPLinear


def psnr(estimate: Tensor, truth: Tensor) -> float:
    return float(-10 * (estimate - truth).square().mean().log10())


def bf_cnn(path: Path) -> FunctionPrior:
    """BF-CNN (Mohan et al. 2020): 20 bias-free convolutions that estimate the noise without being told its level."""
    state = load_state_dict(path)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        h = nn.functional.conv2d(x, state["conv_layers.0.weight"], padding=1).relu()
        for k in range(1, 19):
            h = nn.functional.conv2d(h, state[f"conv_layers.{k}.weight"], padding=1)
            h = (h / state[f"running_sd.{k - 1}"] * state[f"gammas.{k - 1}"]).relu()
        return x - nn.functional.conv2d(h, state["conv_layers.19.weight"], padding=1)

    return FunctionPrior(denoise, name="bf_cnn", sigma_range=(0.0, 100 / 255), channels=3)


def test_bf_cnn_as_a_blind_denoiser(data: Path) -> None:
    from skimage import io

    prior = bf_cnn(data / "weights" / "bf_cnn" / "denoisers_BF_CNN_BSD300_color_noise_range_0to100_model.pt")
    reference = load(f"dncnn:{data / 'weights' / 'kair' / 'dncnn_color_blind.pth'}", precision="float32")
    file = sorted((data / "test" / "CBSD68").glob("*.png"))[0]
    truth = torch.from_numpy(io.imread(file)[:160, :160] / 255.0).permute(2, 0, 1)[None].float()
    noisy = truth + 25 / 255 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (psnr(p(noisy, 25 / 255), truth) for p in (prior, reference))
    # Over every 8th image of the set the two are 0.01 dB apart (31.20 and 31.21).
    assert found == pytest.approx(expected, abs=0.3)
    assert found > psnr(noisy, truth) + 8


class ScoreNetwork(nn.Module):
    """A network in the form of NCSN++: told a label, it returns what `form` wants for pixels N(mean, std^2)."""

    def __init__(self, form: str, mean: float, std: float) -> None:
        super().__init__()
        self.form = form
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        label = label[:, None, None, None]
        if self.form == "ve":  # the label is sigma, the output the score
            return -(x - self.mean) / (self.std**2 + label**2)
        # The label is 999 t; the output is minus the score times the deviation of the noise, that is the noise.
        time = (label / 999).double()
        kept = torch.exp(-time * (0.1 + time * 19.9 / 2))
        score = -(x - kept.sqrt() * self.mean) / (kept * self.std**2 + 1 - kept)
        return (-score * (1 - kept).sqrt()).float()


@pytest.mark.parametrize("form", ["ve", "vp"])
def test_score_sde_networks(form: str, tmp_path: Path) -> None:
    low = 0.0 if form == "ve" else -1.0
    torch.save({"model": ScoreNetwork(form, low + (1 - low) * 0.4, (1 - low) * 0.2).state_dict()}, tmp_path / "c.pth")
    network = ScoreNetwork(form, 0.0, 1.0)
    network.load_state_dict(load_state_dict(tmp_path / "c.pth"))
    common: dict[str, Any] = {"channels": 3, "self_test": False, "precision": "float32"}
    if form == "ve":
        ve = VE(sigma_min=0.01, sigma_max=348.0)
        prior = from_network(network, predicts="score", schedule=ve, time=ve.sigma, data_range=(0, 1), **common)
    else:
        prior = from_network(network, predicts="eps", schedule=VPLinear(), time=lambda t: 999 * t, **common)
    x = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.05, 0.5, 10.0])
    column = sigma[:, None, None, None]
    expected = (0.2**2 * x + column**2 * 0.4) / (0.2**2 + column**2)
    torch.testing.assert_close(prior(x, sigma), expected, rtol=1e-3, atol=1e-3)


def test_a_tiny_adm_learns_to_denoise(tmp_path: Path) -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    process = Discrete.from_betas(betas)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ADM(width=32, multipliers=(1, 1), blocks=1, attention=(2,), head_channels=32, returned=6)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

    def pictures(count: int) -> Tensor:
        """Planes of one colour with a smooth shade, in [0, 1]."""
        corners = torch.rand(count, 3, 2, 2, generator=generator)
        return nn.functional.interpolate(corners, size=(8, 8), mode="bilinear", align_corners=True)

    for _ in range(60):
        z = 2 * pictures(16) - 1
        time = torch.randint(0, 1000, (16,), generator=generator)
        kept = process.alpha_bar(time.double()).float()[:, None, None, None]
        eps = torch.randn(z.shape, generator=generator)
        output = network(kept.sqrt() * z + (1 - kept).sqrt() * eps, time)[:, :3]
        loss = (output - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    prior = load(f"adm:{tmp_path / 'tiny.pt'}", head_channels=32, precision="float32", self_test=False)
    truth = pictures(8)
    for sigma in (0.15, 0.5):
        noisy = truth + sigma * torch.randn(truth.shape, generator=generator)
        assert psnr(prior(noisy, sigma), truth) > psnr(noisy, truth) + {0.15: 1.0, 0.5: 3.0}[sigma]
    assert math.isfinite(float(prior(noisy, 50.0).sum()))
