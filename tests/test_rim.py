"""What a photograph does not show beyond its borders: it sets no colour scale, and is not left out by accident."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff import Posterior, plots, restore
from invdiff.cli import main
from invdiff.html import write_report
from invdiff.operators import Blur
from invdiff.record import describe
from invdiff.rim import Rim
from tests.report_page import data_of, pixels

SHAPE = (1, 24, 30)
OPERATOR = Blur(torch.ones(6, 3) / 18, SHAPE, "valid")
RIM = Rim(3, 1)


def _posterior() -> Posterior:
    """Draws that vary by 0.02 where they were measured, and ten times as much in the rim."""
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    spread = torch.full(SHAPE, 0.2)
    RIM.inside(spread).fill_(0.02)
    record = {"operator": describe(OPERATOR), "draws": 8, "failed": [], "batched": False}
    return Posterior(0.5 + spread * noise, record)


def test_the_rim_of_a_valid_blur_alone():
    assert Rim.of({"operator": describe(OPERATOR)}) == RIM
    for record in ({}, {"operator": None}, {"operator": describe(Blur(torch.ones(3, 3), SHAPE, "zero"))}):
        assert not Rim.of(record)
    image = torch.arange(720.0).reshape(SHAPE)
    inside = torch.zeros(SHAPE)
    inside[:, 3:21, 1:29] = image[:, 3:21, 1:29]
    assert torch.equal(RIM.inside(image), image[:, 3:21, 1:29])
    assert torch.equal(RIM.without(image), inside)


def test_a_measurement_lies_where_it_was_taken():
    """The one place of a point under an even PSF where its blur is centred on it."""
    point = torch.zeros(1, *SHAPE)
    point[..., 12, 14] = 1
    around = RIM.around(OPERATOR(point)[0], point[0], 0.5)
    assert around.shape == SHAPE
    rows, columns = (around[0] - 1 / 18).abs().lt(1e-6).nonzero().T
    # Blurred with the centre k // 2 of 6 x 3 at the point: three rows before it, two after, and a column at each side.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 14, 13, 15)
    assert float(around[0, 0, 0]) == float(around[0, -1, -1]) == 0.5


def test_colours_are_scaled_by_what_was_measured():
    posterior = _posterior()
    figure = plots.uncertainty_map(posterior)
    assert 0.02 < figure.axes[0].images[0].get_clim()[1] < 0.06
    assert figure.axes[0].get_xlabel() == "colours scaled without the rim of 3 pixels, which was not measured"
    y, mean, std = torch.full((1, 19, 28), 0.5), posterior.mean(), posterior.std()
    for rim, low, high in ((RIM, 0.02, 0.06), (None, 0.2, 0.5)):
        axes = {a.get_title(): a for a in plots.panel(y, mean, std=std, truth=0 * mean + 0.5, rim=rim).axes}
        assert low < axes["std (uncalibrated spread)"].images[0].get_clim()[1] < high


def test_the_report_too_and_its_probe_begins_inside(tmp_path):
    y = torch.full(OPERATOR.out_shape, 0.5)
    path = write_report(tmp_path / "r.html", _posterior(), measurement=y, operator=OPERATOR, sigma=0.1)
    text, data = path.read_text(), data_of(path)
    assert "The measurement does not show a rim of 3 pixels, which is restored too: there the spread is" in text
    (top,) = {float(word) for word in re.findall(r"<span>([0-9.e-]+)</span></div>", text)}
    assert 0.02 < top < 0.06
    assert 3 <= data["row"] < 21
    assert 1 <= data["column"] < 29
    # On the stage it lies where it was taken, with gray around it.
    (uri,) = [layer["uri"] for layer in data["layers"] if layer["key"] == "measurement"]
    assert pixels(uri).shape == SHAPE[1:]


def test_a_photograph_without_a_boundary_is_warned_of(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((24, 24), 99, np.uint8)).save("photo.png")
    words = ["restore", "photo.png", "--operator", "blur", "--psf-kind", "disk:1", "--sigma", "0.1", "--prior", "tv"]
    words += ["--solver", "pnp_admm", "--set", "solver.iterations=2"]
    assert main([*words, "--out", "a"]) == 0
    assert capsys.readouterr().err == (
        "invdiff: warning: The boundary of the blur is not given, and circular is taken, which wraps the picture "
        "round: a photograph wants --boundary valid, else ripples come in from its borders; a measurement that was "
        "simulated so --boundary circular.\n"
    )
    for number, more in enumerate((["--boundary", "valid"], ["--boundary", "circular"], ["--simulate"])):
        assert main([*words, *more, "--out", f"b{number}"]) == 0
        assert capsys.readouterr().err == ""
    image = np.full((24, 24), 99, np.uint8)
    settings = {"sigma": 0.1, "prior": "tv", "solver": "pnp_admm", "progress": False}
    with pytest.warns(UserWarning, match="a photograph wants --boundary valid"):
        restore(image, "blur", operator_options={"psf_kind": "disk:1"}, **settings)
    with warnings.catch_warnings(action="error"):
        restore(image, Blur(torch.ones(3, 3) / 9, (1, 24, 24)), **settings)
