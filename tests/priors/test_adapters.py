"""deepinv's denoisers in our slot, ours in deepinv's, and priors on another number of channels."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff.priors import FunctionPrior, Prior, from_deepinv, load, match_channels, to_deepinv
from invdiff.priors.channels import ColourThroughGray, GrayThroughColour, chroma_pattern


def photograph(channels: int) -> Tensor:
    from skimage import data

    image = torch.from_numpy(data.astronaut()[60:140, 180:260] / 255.0).permute(2, 0, 1)[None].float()
    return image if channels == 3 else image.mean(dim=1, keepdim=True)


def psnr(estimate: Tensor, truth: Tensor) -> float:
    return float(-10 * (estimate - truth).square().mean().log10())


class TestFromDeepinv:
    def test_tv_of_deepinv_depends_neither_on_the_batch_nor_on_earlier_calls(self) -> None:
        from deepinv.models import TVDenoiser

        prior = from_deepinv(TVDenoiser(n_it_max=60))
        assert prior.sigma_range == (0.0, 1.0)
        x = torch.rand(2, 3, 12, 13, generator=torch.Generator().manual_seed(0))
        x[1] *= 20  # deepinv stops on a norm over the batch, which this member would rule
        first = prior(x, 0.1)
        assert torch.equal(first[:1], prior(x[:1], 0.1))
        assert torch.equal(first, prior(x, 0.1))

    def test_sigma_reaches_the_network_per_member(self) -> None:
        from deepinv.models import Denoiser

        class Scale(Denoiser):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(()))

            def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
                assert sigma.shape == (len(x),)
                return self.weight * x * sigma[:, None, None, None]

        prior = from_deepinv(Scale(), sigma_range=(0.0, 2.0), channels=1)
        x = torch.ones(2, 1, 3, 3, requires_grad=True)
        assert prior(x, torch.tensor([1.0, 2.0]))[:, 0, 0, 0].tolist() == [1.0, 2.0]
        (gradient,) = torch.autograd.grad(prior(x, 2.0).sum(), x)
        assert torch.equal(gradient, torch.full_like(x, 2.0))
        with pytest.raises(ValueError, match="The noise levels that Scale was trained for are not known"):
            from_deepinv(Scale())
        with pytest.raises(TypeError, match="takes a deepinv denoiser"):
            from_deepinv(lambda x, sigma: x)  # type: ignore[arg-type]

    def test_load_by_name(self, tmp_path: Path) -> None:
        from deepinv.models import DRUNet

        small: dict[str, Any] = {"nc": (4, 4, 8, 8), "nb": 1}
        with pytest.warns(UserWarning, match="deepinv:DRUNet has random weights"):
            load("deepinv:DRUNet", **small)
        reference = DRUNet(pretrained=None, **small).eval()
        torch.save(reference.state_dict(), tmp_path / "w.pth")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prior = load("deepinv:DRUNet", pretrained=str(tmp_path / "w.pth"), **small)
        assert prior.sigma_range == (0.0, 50 / 255)
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(prior(x, 0.1), reference(x, torch.tensor([0.1])))
        assert load("deepinv:MedianFilter", kernel_size=3).differentiable is False

    def test_building_a_network_leaves_the_random_state(self, global_random_state_is_untouched: None) -> None:
        with pytest.warns(UserWarning, match="random weights"):
            prior = load("deepinv:DRUNet", nc=(4, 4, 8, 8), nb=1)
        assert prior.to("cpu", torch.float32) is prior

    @pytest.mark.parametrize(
        ("name", "options", "sentence"),
        [
            ("deepinv:DRUnet", {}, "no denoiser 'DRUnet'; did you mean 'DRUNet'"),
            ("deepinv:zzzz", {}, "choose from .*DRUNet"),
            ("deepinv:TVDenoiser", {"pretrained": "w.pth"}, "takes no weights"),
            ("deepinv:TVDenoiser", {"colour": 3}, "cannot be built from these options"),
        ],
    )
    def test_refusals(self, name: str, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            load(name, **options)


class TestToDeepinv:
    def test_every_form_of_sigma(self) -> None:
        prior = load("gaussian")
        denoiser = to_deepinv(prior)
        x = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
        for sigma in (
            0.1,
            torch.tensor(0.1),
            torch.tensor([0.1]),
            torch.full((2,), 0.1),
            torch.full((2, 1, 1, 1), 0.1),
        ):
            torch.testing.assert_close(denoiser(x, sigma), prior(x, 0.1))
        with pytest.raises(TypeError, match="to_deepinv takes a Prior, got function"):
            to_deepinv(lambda x, sigma: x)  # type: ignore[arg-type]

    def test_a_prior_runs_inside_deepinvs_plug_and_play(self) -> None:
        import deepinv

        truth = photograph(3)
        physics = deepinv.physics.Inpainting(img_size=(3, 80, 80), mask=0.5, rng=torch.Generator().manual_seed(0))
        y = physics(truth)
        model = deepinv.optim.optim_builder(
            iteration="HQS",
            prior=deepinv.optim.PnP(denoiser=to_deepinv(load("wavelet"))),
            data_fidelity=deepinv.optim.data_fidelity.L2(),
            max_iter=12,
            params_algo={"stepsize": [1.0] * 12, "g_param": [0.3 * 0.75**k for k in range(12)]},
        )
        with torch.no_grad():
            result = model(y, physics)
        assert psnr(result, truth) > psnr(physics.A_dagger(y), truth) + 8

    def test_moving_the_module_moves_the_prior(self, tmp_path: Path) -> None:
        from invdiff.priors.cnn import DRUNet, DRUNetwork

        prior = DRUNet(DRUNetwork(1, [2, 2, 2, 2], 1), channels=1, sigma_range=(0.0, 0.1))
        moved: Any = to_deepinv(prior).to("meta")
        assert next(moved.prior.network.parameters()).device.type == "meta"
        assert next(prior.network.parameters()).device.type == "cpu"


class Recorder(Prior):
    """Returns its input and keeps what it was called with."""

    differentiable = False

    def __init__(self, channels: int, sigma_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.channels = channels
        self.sigma_range = sigma_range
        self.calls: list[tuple[Tensor, Tensor]] = []

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append((x, sigma))
        return x


class TestChannels:
    def test_a_prior_that_fits_passes_through(self) -> None:
        for prior, channels in ((load("tv"), 7), (Recorder(3), 3)):
            assert match_channels(prior, channels) is prior
        assert isinstance(match_channels(Recorder(3), 1), GrayThroughColour)
        assert isinstance(match_channels(Recorder(1), 3), ColourThroughGray)
        assert match_channels(Recorder(1), 4).channels == 4
        with pytest.raises(ValueError, match="takes images of 3 channels and cannot serve 2"):
            match_channels(Recorder(3), 2)

    def test_the_colour_prior_sees_white_noise_of_the_level_it_is_told(self) -> None:
        inner = Recorder(3)
        prior = match_channels(inner, 1)
        assert prior.sigma_range == pytest.approx((0.0, 1 / math.sqrt(3)))
        assert not prior.differentiable
        noise = 0.1 * torch.randn(2, 1, 300, 300, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(prior(noise, 0.1), noise, rtol=0, atol=1e-6)  # the mean of the channels is untouched
        seen, level = inner.calls[0]
        torch.testing.assert_close(level, torch.full((2,), 0.1 * math.sqrt(3)))
        covariance = torch.cov(seen[0].flatten(1))
        torch.testing.assert_close(covariance, 0.03 * torch.eye(3), rtol=0, atol=4e-4)

    def test_the_pattern_is_fixed_and_lies_across_gray(self) -> None:
        pattern = chroma_pattern(5, 7)
        assert torch.equal(pattern, chroma_pattern.__wrapped__(5, 7))
        assert float(pattern.sum(dim=1).abs().max()) < 1e-12

    def test_the_gray_prior_sees_planes_at_their_own_levels(self) -> None:
        inner = Recorder(1, (0.01, 0.5))
        prior = match_channels(inner, 3)
        assert prior.sigma_range == pytest.approx((0.01 * math.sqrt(3), 0.5))
        x = 0.1 * torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(prior(x, 0.1), x, rtol=0, atol=1e-6)
        planes, levels = inner.calls[0]
        torch.testing.assert_close(levels, torch.tensor([0.1 / math.sqrt(3), 0.1, 0.1]))
        torch.testing.assert_close(planes.flatten(1).std(dim=1), levels, rtol=0.02, atol=0)
        gray = torch.full((1, 3, 2, 2), 0.7)
        prior(gray, 0.1)
        assert inner.calls[1][0][:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.5, 0.5], abs=1e-6)

    def test_a_prior_of_one_level_takes_each_channel_by_itself(self) -> None:
        inner = Recorder(1, (0.1, 0.1))
        prior = match_channels(inner, 3)
        assert prior.sigma_range == (0.1, 0.1)
        prior(torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 0.1)
        assert inner.calls[0][0].shape == (6, 1, 4, 4)

    def test_two_channels_through_gray(self) -> None:
        x = torch.rand(2, 2, 6, 5, generator=torch.Generator().manual_seed(0))
        gray = FunctionPrior(load("gaussian"), sigma_range=(0.0, 1.0), channels=1, per_member=True)
        sigma = torch.tensor([0.1, 0.2])
        expected = torch.cat([gray(x[:, c : c + 1], sigma) for c in range(2)], dim=1)
        torch.testing.assert_close(match_channels(gray, 2)(x, sigma), expected)

    def test_the_top_of_the_range_is_served(self) -> None:
        for high in torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist():
            prior = match_channels(Recorder(3, (0.0, high)), 1)
            prior(torch.zeros(1, 1, 2, 2), prior.sigma_range[1])

    @pytest.mark.parametrize("kind", ["dncnn:dncnn_color_blind.pth", "ffdnet:ffdnet_color.pth"])
    def test_gray_through_real_colour_priors_is_decibels_above_copying(self, data: Path, kind: str) -> None:
        name, _, file = kind.partition(":")
        colour = load(f"{name}:{data / 'weights' / 'kair' / file}")
        truth = photograph(1)
        noisy = truth + 25 / 255 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
        copied = colour(noisy.expand(-1, 3, -1, -1), 25 / 255).mean(dim=1, keepdim=True)
        gray = load(f"dncnn:{data / 'weights' / 'kair' / 'dncnn_25.pth'}")(noisy, 25 / 255)
        result = psnr(match_channels(colour, 1)(noisy, 25 / 255), truth)
        assert result > psnr(copied, truth) + 4
        assert result > psnr(gray, truth) - 0.4  # near the same network trained on gray

    def test_rotating_beats_each_channel_by_itself(self, data: Path) -> None:
        colour = load(f"ffdnet:{data / 'weights' / 'kair' / 'ffdnet_color.pth'}")
        gray = match_channels(colour, 1)
        truth = photograph(3)
        noisy = truth + 25 / 255 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
        alone = torch.cat([gray(noisy[:, c : c + 1], 25 / 255) for c in range(3)], dim=1)
        rotated = psnr(match_channels(gray, 3)(noisy, 25 / 255), truth)
        assert rotated > psnr(alone, truth) + 1
        assert rotated > psnr(colour(noisy, 25 / 255), truth) - 0.4
