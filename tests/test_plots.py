"""Pictures: what they say and what they refuse; how they look is looked at by people."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from invdiff import plots
from invdiff.posterior import Posterior


def _draws(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _words(figure: object) -> str:
    axes = figure.axes  # type: ignore[attr-defined]
    return " ".join(text for a in axes for text in (a.get_title(), a.get_xlabel()))


@pytest.mark.parametrize("label", ["uncalibrated spread", "heuristic spread"])
def test_uncertainty_map_shows_the_std_and_says_what_it_is(label: str) -> None:
    draws = _draws(5, 3, 12, 20)
    figure = plots.uncertainty_map(Posterior(draws, {}, label))
    image, bar = figure.axes
    assert label in image.get_title()
    assert "5 draws" in image.get_title()
    shown = image.images[0]
    np.testing.assert_allclose(shown.get_array(), draws.std(0).square().mean(0).sqrt(), rtol=1e-5)
    low, high = bar.get_ylim()  # the colour bar covers the values, from zero
    assert low == 0
    assert 0.9 * shown.get_array().max() < high <= shown.get_array().max() * 1.001


def test_uncertainty_map_of_one_measurement_of_several() -> None:
    draws = _draws(4, 2, 1, 8, 8)
    figure = plots.uncertainty_map(Posterior(draws, {}), measurement=1)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), draws[:, 1, 0].std(0), rtol=1e-5)


def test_uncertainty_map_refuses_what_has_no_spread() -> None:
    with pytest.raises(ValueError, match="point estimate"):
        plots.uncertainty_map(Posterior(_draws(1, 1, 8, 8), {}, "point estimate"))
    with pytest.raises(ValueError, match="at least 2 draws"):
        plots.uncertainty_map(Posterior(_draws(1, 1, 8, 8), {}))
    with pytest.raises(ValueError, match="expected images"):
        plots.uncertainty_map(Posterior(_draws(3, 8), {}))


def test_panel_holds_everything_that_is_known() -> None:
    draws = _draws(4, 3, 16, 16)
    truth = _draws(1, 3, 16, 16)[0]
    figure = plots.panel(
        _draws(3, 4, 4),
        draws.mean(0),
        draw=draws[0],
        std=draws.std(0),
        truth=truth,
        label="heuristic spread",
        captions={"restored": "20.00 dB"},
    )
    words = _words(figure)
    for word in ("measurement", "restored", "one draw", "truth", "heuristic spread", "error", "20.00 dB"):
        assert word in words
    titles = {axes.get_title(): axes for axes in figure.axes}
    assert titles["measurement"].images[0].get_array().shape == (4, 4, 3)  # its own size
    heats = [axes.images[0] for title, axes in titles.items() if "std" in title or "error" in title]
    assert len(heats) == 2
    assert heats[0].get_clim() == heats[1].get_clim()  # comparable
    error = (draws.mean(0) - truth).square().mean(0).sqrt()
    np.testing.assert_allclose(titles["error of the restored"].images[0].get_array(), error, rtol=1e-4)
    target = io.BytesIO()
    figure.savefig(target)
    assert target.getvalue().startswith(b"\x89PNG")


def test_panel_of_a_point_estimate_without_truth() -> None:
    figure = plots.panel(_draws(1, 8, 8), _draws(1, 8, 8))
    assert [axes.get_title() for axes in figure.axes] == ["measurement", "restored"]
    assert [axes.get_title() for axes in plots.panel(_draws(30), _draws(1, 8, 8)).axes] == ["restored"]
