"""The self-test at load: every wrong declaration is named, every right one passes without a word."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.priors import from_network, load_natural, selftest
from invdiff.priors.network import ConvertedPrior
from invdiff.priors.parametrization import from_x0, input_scale
from invdiff.priors.selftest import check
from invdiff.process import EDM, VE, Discrete, Flow, Process, VPCosine, VPLinear
from tests.priors.mnist_ddpm import digits_prior

BETAS = torch.linspace(1e-4, 0.02, 1000)


@pytest.fixture(scope="module")
def natural() -> Any:
    return load_natural(precision="float32")


def disguised(natural: Any, kind: str, low: float, bgr: bool = False, process: Process | None = None) -> Any:
    """The shipped prior as a network of `kind` (a DDPM) for images between low and 1, perhaps in blue, green, red."""
    known = process or Discrete.from_betas(BETAS)

    def network(x: Tensor, t: Tensor) -> Tensor:
        time = t.double()
        if kind == "F":
            sigma = (4 * time).exp()
            scale = input_scale("edm", sigma)
        else:
            sigma, scale = known.sigma(time).clamp_min(1e-6), known.scale(time)
        z = (x / scale[:, None, None, None]).float()
        image = (z - low) / (1 - low)
        level = (sigma / (1 - low)).float().clamp(*natural.sigma_range)
        clean = natural(image.flip(1), level).flip(1) if bgr else natural(image, level)
        output = from_x0(kind, low + (1 - low) * clean, z, sigma)
        return output / scale.to(output)[:, None, None, None] if kind == "score" else output

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


# VE as score_sde has it: images in [0, 1], the network is told its noise level.
SONG = VE(0.01, 348.0)
FAMILIES: dict[str, tuple[str, Process, float]] = {
    "F": ("F", EDM(), -1.0),
    "flow": ("flow", Flow(), -1.0),
    "score of VE": ("score", SONG, 0.0),
    "score of VP": ("score", VPLinear(), -1.0),
    "eps of the cosine process": ("eps", VPCosine(), -1.0),
    "v of the cosine process": ("v", VPCosine(), -1.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_right_declaration_of_every_family_passes(natural: Any, family: str) -> None:
    kind, process, low = FAMILIES[family]
    network = disguised(natural, kind, low, process=process)
    settings = RIGHT | {"betas": None, "schedule": process, "data_range": (low, 1)}
    assert warned(from_network(network, predicts=kind, **settings)) == ""


@pytest.mark.parametrize(
    ("family", "declared", "suspect"),
    [
        ("score of VE", "eps", "predicts='score' (not 'eps')"),
        ("score of VE", "x0", "predicts='score' (not 'x0')"),
        ("score of VP", "v", "predicts='score' (not 'v')"),
        ("flow", "v", "predicts='flow' (not 'v')"),
        ("flow", "eps", "predicts='flow' (not 'eps')"),
        ("F", "x0", "predicts='F' (not 'x0')"),
        ("F", "flow", "predicts='F' (not 'flow')"),
        ("eps of the cosine process", "F", "predicts='eps' (not 'F')"),
        ("v of the cosine process", "score", "predicts='v' (not 'score')"),
    ],
)
def test_a_wrong_kind_is_recognised_in_every_family(natural: Any, family: str, declared: str, suspect: str) -> None:
    kind, process, low = FAMILIES[family]
    network = disguised(natural, kind, low, process=process)
    settings = RIGHT | {"betas": None, "schedule": process, "data_range": (low, 1)}
    assert f"better with {suspect}" in warned(from_network(network, predicts=declared, **settings))


def test_two_mistakes_and_a_wrong_clock_are_recognised(natural: Any) -> None:
    score = disguised(natural, "score", 0.0, process=SONG)
    said = warned(from_network(score, predicts="eps", **RIGHT | {"betas": None, "schedule": SONG}))
    assert "predicts='score' (not 'eps') and data_range=(0, 1) (not (-1, 1))" in said
    flow = disguised(natural, "flow", -1.0, process=Flow())
    said = warned(from_network(flow, predicts="eps", **RIGHT))
    assert "predicts='flow' (not 'eps'), its schedule and time left out" in said


def test_a_network_that_refuses_another_reading_is_tested_on_the_others(natural: Any) -> None:
    network = disguised(natural, "eps", -1.0)

    def table(x: Tensor, t: Tensor) -> Tensor:
        if t.is_floating_point():
            raise IndexError("a table wants whole numbers")
        return network(x, t)

    options = RIGHT | {"time": "integer"}
    assert warned(from_network(table, predicts="eps", **options)) == ""
    assert "predicts='eps' (not 'x0')" in warned(from_network(table, predicts="x0", **options))
    reverse: Any = from_network(table, predicts="eps", **options | {"betas": BETAS.flip(0)})
    assert "betas in the reverse order" in warned(reverse)
    with pytest.raises(IndexError, match="a table wants whole numbers"):
        check(from_network(table, predicts="eps", **RIGHT))


def test_what_cannot_win_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that does not denoise the lowest levels are computed, once for every way to feed it."""
    seen: list[int] = []

    def untrained(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        return 0.1 * x.sin()

    prior: Any = from_network(untrained, predicts="eps", **RIGHT)
    sentence = "untrained does not denoise a test image"
    assert sentence in warned(prior)
    # Two images at two levels: as declared, another range, two ways of reversal, EDM's and the flow's.
    assert seen == [4] * 6
    monkeypatch.setattr(selftest, "SECONDS", 0.0)
    seen.clear()
    assert sentence in warned(prior)
    assert seen == [4], "out of time, no other way is tried"


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
