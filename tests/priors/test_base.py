"""The prior slot: what a call checks, what may stand in it, and loading by name."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff import priors
from invdiff.priors import FunctionPrior, Prior, as_prior
from invdiff.priors.base import lies_on


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma**2)


@pytest.mark.parametrize(
    ("x", "sigma", "error", "sentence"),
    [
        (torch.zeros(3, 4, 4), 0.1, ValueError, r"shape \(b, C, H, W\), got \(3, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), 0.1, ValueError, r"got \(1, 3, 0, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0.1, TypeError, "floating point .* got torch.uint8"),
        ([[0.0]], 0.1, TypeError, "takes a torch tensor .* got list"),
        (torch.zeros(2, 3, 4, 4), -0.1, ValueError, "at least 0, got -0.1"),
        (torch.zeros(2, 3, 4, 4), math.nan, ValueError, "finite and at least 0, got nan"),
        (torch.zeros(2, 3, 4, 4), math.inf, ValueError, "finite and at least 0, got inf"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.1, math.nan]), ValueError, "got nan"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.1, -0.5]), ValueError, "got -0.5"),
        (torch.zeros(2, 3, 4, 4), torch.ones(3), ValueError, r"one entry per image \(2\), got a tensor \(3,\)"),
        (torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 1, 1), ValueError, r"got a tensor \(2, 1, 1, 1\)"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(x: Any, sigma: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        as_prior(shrink)(x, sigma)
    assert str(caught.value).endswith(".")


def test_an_empty_batch_passes() -> None:
    assert as_prior(shrink)(torch.zeros(0, 3, 4, 4), 0.1).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("sigma", [1.0, torch.tensor(1.0), torch.tensor([1.0]), torch.ones(4)])
def test_sigma_may_be_a_number_a_scalar_or_one_per_member(sigma: float | Tensor) -> None:
    assert torch.equal(as_prior(shrink)(torch.ones(4, 1, 1, 4), sigma), torch.full((4, 1, 1, 4), 0.5))


def test_a_plain_function_gets_a_scalar_even_where_width_equals_batch() -> None:
    # x / (1 + sigma**2) with sigma (b,) would broadcast along the width here, without an error.
    result = as_prior(shrink)(torch.ones(3, 1, 2, 3), torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(result[:, 0, 0, 0], torch.tensor([1.0, 0.5, 1.0]))
    assert torch.equal(result, result[..., :1].expand_as(result))


def test_a_prior_and_a_denoiser_keep_what_they_are() -> None:
    class Own:
        sigma_range = (0.1, 0.2)
        differentiable = False

        def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            assert isinstance(sigma, Tensor)
            assert sigma.shape == (len(x),)
            return x

    prior = as_prior(Own())
    assert prior.sigma_range == (0.1, 0.2)
    assert not prior.differentiable
    assert as_prior(prior) is prior
    prior(torch.zeros(2, 1, 3, 3), torch.tensor([0.15, 0.2]))
    with pytest.raises(ValueError, match=r"sigma 0\.3 is above the range of Own, 0\.1 to 0\.2"):
        prior(torch.zeros(2, 1, 3, 3), 0.3)


def test_a_function_that_returns_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor of the shape of its input \(1, 1, 2, 2\), got \(1, 1, 1, 2\)"):
        as_prior(lambda x, sigma: x[..., :1, :])(torch.zeros(1, 1, 2, 2), 0.1)
    with pytest.raises(ValueError, match="got NoneType"):
        as_prior(lambda x, sigma: None)(torch.zeros(1, 1, 2, 2), 0.1)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="must be callable"):
        FunctionPrior(3)  # type: ignore[arg-type]


def test_a_bad_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= lowest <= highest, got \(0.5, 0.1\)"):
        FunctionPrior(shrink, sigma_range=(0.5, 0.1))


def test_moving_a_module_leaves_the_original_alone() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x * self.weight

    module = Scale()
    moved = as_prior(module).to(dtype=torch.float64)
    assert moved(torch.ones(1, 1, 1, 1, dtype=torch.float64), 0.1).dtype == torch.float64
    assert module.weight.dtype == torch.float32


def test_a_module_that_lies_there_already_is_not_copied() -> None:
    prior = as_prior(nn.Conv2d(1, 1, 1).double())
    for device, dtype in ((None, None), ("cpu", None), (torch.device("cpu", 0), torch.float64)):
        assert prior.to(device, dtype) is prior
    assert prior.to(dtype=torch.float32) is not prior
    assert prior.to("meta") is not prior
    nested = FunctionPrior(priors.load("tv"))
    assert nested.to("cpu", torch.float64) is nested


def test_cuda_without_a_number_is_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert lies_on(torch.device("cuda:1"), "cuda")
    assert lies_on(torch.device("cuda:0"), "cuda:0")
    assert not lies_on(torch.device("cuda:0"), "cuda")
    assert not lies_on(torch.device("cuda:0"), "cuda:1")
    assert not lies_on(torch.device("cpu"), "cuda")
    assert lies_on(torch.device("cpu"), "cpu:0")


def test_the_case_of_a_name_does_not_matter() -> None:
    assert isinstance(priors.load("TV"), priors.TV)
    assert isinstance(priors.load("Nlm"), priors.NonLocalMeans)
    with pytest.raises(FileNotFoundError, match=r"Missing\.pth does not exist"):
        priors.load("DnCNN:Missing.pth")
    assert {"DiffusionPrior", "load_natural"} <= set(priors.__all__)


def test_a_prior_is_shown_by_name_channels_and_noise_levels() -> None:
    assert repr(priors.load("tv")) == "TV('tv', any channels, sigma 0 to 1)"
    gray = priors.FunctionPrior(lambda x, sigma: x, name="gray", channels=1, sigma_range=(0.00123, 12.0))
    assert repr(gray) == "FunctionPrior('gray', 1 channel, sigma 0.00123 to 12)"
    assert repr(priors.match_channels(gray, 3)).startswith("ColourThroughGray('gray on 3 channels', 3 channels, sigma ")
    exact = repr(priors.GaussianPrior(torch.zeros(1, 2, 2), torch.eye(4)))
    assert exact.startswith("GaussianPrior(")
    assert exact.endswith("shape (1, 2, 2), sigma 0 to inf)")


def test_names_has_one_line_for_all_that_load_takes() -> None:
    for name, line in priors.names().items():
        assert line
        assert "\n" not in line
        if ":" not in name and name not in ("natural", "bm3d"):
            assert isinstance(priors.load(name), Prior)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tvv", "No prior is named 'tvv'; did you mean 'tv'?"),
        ("Wavelets", "did you mean 'wavelet'?"),
        ("dncn:weights.pth", "did you mean 'dncnn:PATH'?"),
        ("qqqq", "choose from natural, gaussian"),
        ("dncnn", "The prior 'dncnn' needs an argument: write 'dncnn:PATH'"),
        ("deepinv:", "write 'deepinv:NAME' with a class of deepinv.models"),
        ("tv:3", "takes no argument after a colon, got 'tv:3'; write 'tv'"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        priors.load(name)
    assert sentence in str(caught.value)


def test_everything_in_all_exists() -> None:
    for name in priors.__all__:
        assert getattr(priors, name) is not None
    assert set(priors.__all__) <= set(dir(priors))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        priors.nothing  # noqa: B018


def test_the_package_loads_its_parts_only_when_used() -> None:
    code = (
        "import sys, torch; import invdiff.priors; "
        "heavy = {'skimage', 'scipy', 'deepinv', 'matplotlib', 'safetensors', 'bm3d', 'pywt'} & set(sys.modules); "
        "own = {m for m in sys.modules if m.startswith('invdiff.priors.')}; "
        "assert not heavy, heavy; assert own == {'invdiff.priors.base'}, own; "
        "invdiff.priors.load('tv'); invdiff.priors.load('wavelet'); "
        "assert not ({'skimage', 'scipy', 'deepinv'} & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
