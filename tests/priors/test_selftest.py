"""The self-test at load: every wrong declaration is named, every right one passes without a word."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import from_network, load_natural
from invdiff.priors.network import ConvertedPrior
from invdiff.priors.parametrization import from_x0
from invdiff.priors.selftest import check
from invdiff.process import Discrete
from tests.priors.mnist_ddpm import digits_prior

BETAS = torch.linspace(1e-4, 0.02, 1000)


@pytest.fixture(scope="module")
def natural() -> Any:
    return load_natural(precision="float32")


def disguised(natural: Any, kind: str, low: float, bgr: bool) -> Any:
    """The shipped prior as a DDPM network of `kind`, for images between low and 1, perhaps in blue, green, red."""
    process = Discrete.from_betas(BETAS)

    def network(x: Tensor, t: Tensor) -> Tensor:
        time = t.double()
        sigma = process.sigma(time)
        z = (x / process.scale(time)[:, None, None, None]).float()
        image = (z - low) / (1 - low)
        level = (sigma / (1 - low)).float().clamp(*natural.sigma_range)
        clean = natural(image.flip(1), level).flip(1) if bgr else natural(image, level)
        return from_x0(kind, low + (1 - low) * clean, z, sigma)

    return network


def warned(prior: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(prior)
    assert len(caught) <= 1
    return str(caught[0].message) if caught else ""


RIGHT: dict[str, Any] = {"betas": BETAS, "channels": 3, "self_test": False, "precision": "float32"}


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_a_right_declaration_passes(natural: Any, kind: str, low: float, bgr: bool) -> None:
    network = disguised(natural, kind, low, bgr)
    assert warned(from_network(network, predicts=kind, data_range=(low, 1), bgr=bgr, **RIGHT)) == ""


@pytest.mark.parametrize(
    ("truth", "wrong", "suspect"),
    [
        ({"kind": "eps"}, {"predicts": "v"}, r"predicts='eps' \(not 'v'\)"),
        ({"kind": "v"}, {"predicts": "eps"}, r"predicts='v' \(not 'eps'\)"),
        ({"kind": "x0"}, {"predicts": "eps"}, r"predicts='x0' \(not 'eps'\)"),
        ({}, {"data_range": (0, 1)}, r"data_range=\(-1, 1\) \(not \(0, 1\)\)"),
        ({"low": 0.0}, {}, r"data_range=\(0, 1\) \(not \(-1, 1\)\)"),
        ({"bgr": True}, {}, "bgr=True .its colours in the order blue, green, red"),
        ({}, {"bgr": True}, "bgr=False .its colours in the order red, green, blue"),
        ({}, {"betas": BETAS.flip(0)}, "betas in the reverse order"),
        ({}, {"time": lambda t: 999 - t}, "time counted from the other end"),
        ({}, {"betas": None, "alphas_bar": (1 - BETAS.double()).cumprod(0).flip(0)}, "schedule is reversed"),
    ],
)
def test_a_wrong_declaration_is_recognised(natural: Any, truth: Any, wrong: Any, suspect: str) -> None:
    real = {"kind": "eps", "low": -1.0, "bgr": False} | truth
    network = disguised(natural, **real)
    declared = RIGHT | {"predicts": real["kind"], "data_range": (-1, 1)} | wrong
    with pytest.warns(UserWarning, match=f"may be declared wrongly: .*{suspect}.*pass self_test=False"):
        from_network(network, **declared | {"self_test": True})


@pytest.mark.parametrize(
    ("changes", "suspect"),
    [
        ({}, ""),
        ({"predicts": "v"}, "predicts='eps' (not 'v')"),
        ({"data_range": (0, 1)}, "data_range=(-1, 1) (not (0, 1))"),
        ({"time": lambda t: 1 - t / 1000}, "time counted from the other end"),
    ],
)
def test_a_network_for_digits_that_never_saw_a_photograph(data: Path, changes: Any, suspect: str) -> None:
    path = data / "weights" / "ddpm_mnist" / "sdaloglu_ddpm_mnist.pth"
    said = warned(digits_prior(path, self_test=False, **changes))
    assert suspect in said if suspect else said == ""


def test_a_network_that_was_never_trained(data: Path) -> None:
    # Its layer norms are within 0.0002 of where they start, the learning rate of one step.
    path = data / "weights" / "ddpm_mnist" / "maxtalberg_ddpm_mnist.pth"
    with pytest.warns(UserWarning, match="does not denoise a test image at any noise level"):
        digits_prior(path)


def test_what_it_leaves_alone(natural: Any, global_random_state_is_untouched: None) -> None:
    prior: Any = from_network(disguised(natural, "eps", -1.0, False), predicts="eps", **RIGHT)
    before = copy.copy(vars(prior))
    check(prior)
    assert vars(prior) == before
    # Two channels are no image that it knows; nor is a range without a level of its list.
    for changes in ({"channels": 2}, {"sigma_range": (50.0, 60.0)}):
        silent = from_network(lambda x, t: x / 0, predicts="eps", **RIGHT | changes)
        assert isinstance(silent, ConvertedPrior)
        assert warned(silent) == ""
