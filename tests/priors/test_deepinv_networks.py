"""deepinv's diffusion networks as priors, and its downloads without unpickling."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import from_deepinv, from_network, load

SMALL: dict[str, Any] = {
    "pretrained": None,
    "img_resolution": 16,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_blocks": 1,
}


def randomised(name: str, **options: Any) -> Any:
    import deepinv

    with torch.random.fork_rng(devices=[]):
        model = getattr(deepinv.models, name)(**SMALL | options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", ["ADMUNet", "NCSNpp"])
@pytest.mark.parametrize("centred", [False, True])
def test_edm_networks_both_ways(name: str, centred: bool) -> None:
    model = randomised(name, attn_resolutions=(8,), _was_trained_on_minus_one_one=centred, pixel_std=0.4)
    adapted = from_deepinv(model)
    assert adapted.sigma_range == (0.001, 40.0)
    # deepinv's own preconditioning, and ours around its bare network, are one denoiser.
    converted = from_network(
        lambda x, t: model.forward_unet(x, t),
        predicts="F",
        sigma_data=0.4,
        data_range=(-1, 1) if centred else (0, 1),
        channels=3,
        precision="float32",
        self_test=False,
    )
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.02, 0.3, 5.0])
    with torch.no_grad():
        expected = model(x, sigma)
        assert float((expected - x).std()) > 0.01
        torch.testing.assert_close(adapted(x, sigma), expected)
        torch.testing.assert_close(converted(x, sigma), expected, rtol=1e-4, atol=1e-4)


def fetching(file: Path) -> Any:
    """In place of the network: the loader as torch.hub calls it, on a file that is there."""
    return lambda *args, **kwargs: torch.load(file, map_location="cpu", weights_only=False)


def test_the_download_flag_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepinv.models import DRUNet

    small: dict[str, Any] = {"nc": (4, 4, 8, 8), "nb": 1}
    reference = DRUNet(pretrained=None, **small).eval()
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetching(tmp_path / "w.pth"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior = load("deepinv:DRUNet", pretrained="download", **small)
    x: Tensor = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior(x, 0.1), reference(x, torch.tensor([0.1])))
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Planted:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_download_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": Planted(tmp_path / "ran")}, tmp_path / "w.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetching(tmp_path / "w.pth"))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with pytest.raises(ValueError, match="What deepinv downloaded for DRUNet holds pickled Python objects"):
        load("deepinv:DRUNet", pretrained="download", nc=(4, 4, 8, 8), nb=1)
    assert not (tmp_path / "ran").exists()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"
