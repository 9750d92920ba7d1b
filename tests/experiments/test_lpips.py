"""LPIPS with weights from a file."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from invdiff.experiments.lpips import LPIPS
from invdiff.experiments.run import main

SIZES = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
NAMES = ("net.slice1.0", "net.slice2.3", "net.slice3.6", "net.slice4.8", "net.slice5.10")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(into, out, side, stride, pad) for into, out, side, stride, pad in SIZES]
    weights = [torch.rand(1, convolution.out_channels, 1, 1) for convolution in convolutions]
    return convolutions, weights


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    convolutions, weights = network
    state = {}
    for level, (name, convolution, weight) in enumerate(zip(NAMES, convolutions, weights, strict=True)):
        state |= {f"{name}.weight": convolution.weight.detach(), f"{name}.bias": convolution.bias.detach()}
        state[f"lin{level}.model.1.weight"] = weight
    path = tmp_path_factory.mktemp("lpips") / "alex.pth"
    torch.save(state, path)
    return path


def by_the_formula(network, image, truth):
    """Written a second time, in float64, pixel by pixel of each map."""
    convolutions, weights = network
    mean, std = torch.tensor([-0.030, -0.088, -0.188]).double(), torch.tensor([0.458, 0.448, 0.450]).double()
    maps = [((2 * picture.double().movedim(0, 2) - 1 - mean) / std).movedim(2, 0)[None] for picture in (image, truth)]
    total = 0.0
    for level, (convolution, weight) in enumerate(zip(convolutions, weights, strict=True)):
        if level in (1, 2):
            maps = [nn.functional.max_pool2d(x, 3, 2) for x in maps]
        with torch.no_grad():
            maps = [nn.functional.relu(convolution.double()(x)) for x in maps]
        units = [nn.functional.normalize(x, dim=1, eps=1e-10) for x in maps]
        total += float(((units[0] - units[1]) ** 2 * weight.double()).sum(1).mean())
    return total


def test_it_is_the_formula(network, file):
    image, truth = torch.rand(3, 64, 70), torch.rand(3, 64, 70)
    distance = LPIPS(file)(image, truth)
    assert distance == pytest.approx(by_the_formula(network, image, truth), rel=1e-4)
    assert LPIPS(file)(truth, image) == pytest.approx(distance)
    assert LPIPS(file)(truth, truth) == 0


def test_values_are_clipped_and_gray_is_three_channels(file):
    score, image, truth = LPIPS(file), torch.rand(3, 40, 40), torch.rand(1, 40, 40)
    assert score(image * 3 - 1, image) == pytest.approx(score((image * 3 - 1).clamp(0, 1), image))
    assert score(truth, truth.expand(3, -1, -1)) == 0


def test_what_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match="LPIPS needs images of at least 35 x 35 pixels, got 34 x 40: crop less"):
        LPIPS(file)(torch.rand(3, 34, 40), torch.rand(3, 34, 40))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lacks net\.slice1\.0\.weight: expected the state of lpips\.LPIPS"):
        LPIPS(tmp_path / "other.pth")


def test_the_column_is_filled_with_weights_alone(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["operator=mask", "data.crop=40", "data.images=[chelsea]", "prior=gaussian", "solver=pnp_hqs"]
    assert main([*words, "pictures=false", "out=with", f"lpips={file}"]) == 0
    assert main([*words, "pictures=false", "out=without"]) == 0
    values = {}
    for name in ("with", "without"):
        (path,) = tmp_path.glob(f"{name}/*/figures.csv")
        with path.open(newline="") as rows:
            (values[name],) = [row["lpips"] for row in csv.DictReader(rows)]
    assert float(values["with"]) > 0
    assert values["without"] == ""
