"""BM3D keeps the contract of the priors; few calls, because the package needs seconds for each."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from invdiff import priors
from invdiff.priors import bm3d as adapter


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name == "bm3d":
            raise ImportError("No module named 'bm3d'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'invdiff\[bm3d\]'"):
        priors.load("bm3d")


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("bm3d", reason="the optional package bm3d is absent")

    def test_the_licence_is_told_once_per_process(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(adapter, "_told", False)
        priors.load("bm3d")
        priors.load("bm3d")
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("noncommercial") == 1

    def test_colour_gains_psnr_and_equals_the_package(self) -> None:
        import bm3d
        from skimage import data

        truth = torch.from_numpy(data.astronaut()[60:108, 180:228] / 255.0).permute(2, 0, 1)[None]
        noisy = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=truth.dtype)
        kept = noisy.clone()
        prior = priors.load("bm3d")
        result = prior(noisy, 0.1)
        assert torch.equal(noisy, kept)
        gain = 10 * ((noisy - truth).square().mean() / (result - truth).square().mean()).log10()
        assert float(gain) > 7.0
        direct = bm3d.bm3d_rgb(noisy[0].permute(1, 2, 0).numpy(), 0.1)
        # The package adds up in several threads, so two calls differ in the last bits.
        torch.testing.assert_close(result[0].permute(1, 2, 0), torch.from_numpy(direct), rtol=0, atol=1e-5)

    def test_small_gray_images_members_and_dtype(self) -> None:
        x = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
        result = priors.load("bm3d")(x, torch.tensor([0.0, 0.2]))
        assert result.shape == x.shape
        assert result.dtype == x.dtype
        assert not result.requires_grad
        assert torch.equal(result[0], x[0])
        torch.testing.assert_close(result[1:], priors.load("bm3d")(x[1:], 0.2), rtol=0, atol=1e-5)

    def test_a_gray_picture_in_three_channels_stays_finite(self) -> None:
        x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(1, 3, 16, 16)
        assert torch.isfinite(priors.load("bm3d")(x, 0.1)).all()
