"""Pictures of a check: what they show, and what they refuse; how they look is looked at by people."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
import torch

from invdiff import Posterior, calibration, calibration_plots
from invdiff.calibration import PIXELS, Check

SHAPE = (1, 8, 8)


@functools.lru_cache(maxsize=4)
def check(images: int = 12, draws: int = 39, scale: float = 1.0) -> Check:
    generator = torch.Generator().manual_seed(0)
    table = scale * torch.randn(images, draws, *SHAPE, generator=generator)
    return calibration.check([Posterior(x, {}) for x in table], torch.randn(images, *SHAPE, generator=generator))


def drawn(figure: object) -> bytes:
    target = io.BytesIO()
    figure.savefig(target)  # type: ignore[attr-defined]
    return target.getvalue()


def test_coverage_is_drawn_against_the_nominal_one() -> None:
    quantities = (PIXELS, "means of 2x2 patches")
    figure = calibration_plots.coverage_plot(check(), quantities)
    (axes,) = figure.axes
    diagonal, *lines = axes.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    for line, quantity in zip(lines, quantities, strict=True):
        found = check().pooled[quantity].coverage
        np.testing.assert_allclose(line.get_xydata(), [[level, share.value] for level, share in found.items()])
        assert line.get_label() == quantity
    bars = axes.collections[0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[s.low, s.high] for s in found_of(PIXELS)])
    assert "12 images" in axes.get_title()
    assert drawn(figure).startswith(b"\x89PNG")


def found_of(quantity: str) -> list:
    return list(check().pooled[quantity].coverage.values())


def test_a_level_out_of_reach_is_not_drawn() -> None:
    (axes,) = calibration_plots.coverage_plot(check(draws=20)).axes
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [0.5, 0.8, 0.9])


def test_ranks_are_drawn_with_the_band_of_calibrated_draws() -> None:
    inside = []
    for scale in (1.0, 0.6):
        found = check(scale=scale)
        figure = calibration_plots.rank_plot(found)
        (axes,) = figure.axes
        stairs = axes.patches[1].get_data()
        np.testing.assert_allclose(stairs.values, 20 * np.array(found.pooled[PIXELS].histogram))
        band = axes.collections[0].get_paths()[0].vertices
        low, high = band[:, 1].min(), band[:, 1].max()
        assert 0.4 < low < 1 < high < 1.6
        inside.append((stairs.values >= low) & (stairs.values <= high))
        assert drawn(figure).startswith(b"\x89PNG")
    assert inside[0].all()
    assert not inside[1][[0, -1]].any()  # a bowl


def test_the_tarp_curve_counts_images() -> None:
    figure = calibration_plots.tarp_plot(check())
    (axes,) = figure.axes
    curve = axes.lines[1].get_xydata()
    np.testing.assert_allclose(curve[1:-1, 0], check().tarp)
    np.testing.assert_allclose(curve[1:-1, 1], np.arange(1, 13) / 12)
    band = axes.collections[0].get_paths()[0].vertices
    # 12 images: the 95 % bound of Kolmogorov and Smirnov is 0.375.
    assert band[band[:, 0] == 0][:, 1].max() == pytest.approx(0.375, abs=1e-3)
    assert drawn(figure).startswith(b"\x89PNG")


def test_the_overview_says_what_the_spread_is() -> None:
    figure = calibration_plots.overview(check())
    assert len(figure.axes) == 3
    assert figure.get_suptitle() == "12 images: uncalibrated spread"
    one = calibration_plots.overview(check(1))
    assert len(one.axes) == 2
    assert one.get_suptitle() == "1 image: uncalibrated spread"
    assert "one image" in one.axes[1].get_title()
    assert drawn(one).startswith(b"\x89PNG")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 2 images, one point each: there is 1 image"):
        calibration_plots.tarp_plot(check(1))
    with pytest.raises(ValueError, match="No level of 50 %, 80 %, 90 %, 95 % is reached by the draws of 'pixels'"):
        calibration_plots.coverage_plot(check(2, 2))
    with pytest.raises(ValueError, match="There are 6 quantities: expected 1 to 5"):
        calibration_plots.coverage_plot(check(), (PIXELS,) * 6)
    for picture in (calibration_plots.rank_plot, calibration_plots.overview):
        with pytest.raises(KeyError, match="expected one of 'pixels'"):
            picture(check(), "texture")
    with pytest.raises(KeyError, match="expected one of 'pixels'"):
        calibration_plots.coverage_plot(check(), ("texture",))
