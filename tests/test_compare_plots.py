"""Plots of a sweep: as many panels as there is to show, every prior named, letters that can be read."""

from __future__ import annotations

import pytest

from invdiff.compare import best
from invdiff.compare_grid import bold_best, picture_grid
from invdiff.compare_plots import _apart, _column_end, cost_plot, spread_plot, write_plots
from invdiff.provenance import read
from invdiff.sweep import read_sweep
from tests.sweeps import rows, write_job, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory):
    return read_sweep(write_sweep(tmp_path_factory.mktemp("sweep"), ["blur", "down4", "mask"]))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def sizes(figure):
    figure.draw_without_rendering()
    return [text.get_fontsize() for text in figure.findobj(lambda part: hasattr(part, "get_fontsize"))]


@pytest.mark.parametrize("figure", ["nfe", "seconds"])
def test_quality_against_cost_has_a_panel_a_task_and_names_its_priors(sweep, figure):
    plot = cost_plot(sweep, figure)
    assert [axes.get_title("left") for axes in plot.axes] == ["blur", "down4", "mask"]
    for axes in plot.axes:
        assert sorted(texts(axes)) == ["gaussian", "natural", "tv"]
        points = sorted(float(y) for line in axes.lines for y in line.get_ydata())
        assert len(points) == 4
    heights = sorted(float(y) for line in plot.axes[0].lines for y in line.get_ydata())
    assert heights == pytest.approx([23.5, 25.8, 27.9, 28.1])
    assert [text.get_text() for text in plot.legends[0].get_texts()] == ["pnp_hqs", "ddrm"]
    assert plot.get_figwidth() == 7.0
    assert min(sizes(plot)) >= 7


def test_bars_are_of_the_difference_from_the_reference(sweep):
    chosen = {task: best(jobs) for task, jobs in sweep.tasks().items()}
    axes = cost_plot(sweep, "nfe", chosen).axes[0]
    bars = [segment for part in axes.collections for segment in part.get_segments() if len(segment)]
    # From one image to the next PSNRs grow by up to 2.1 dB, their differences from the best by at most 0.7.
    widths = [float(bar[1][1] - bar[0][1]) for bar in bars]
    assert len(widths) == 3
    assert all(0 < width < 1.5 for width in widths)
    assert not [
        part for part in cost_plot(sweep, "nfe", dict.fromkeys(chosen)).axes[0].collections if part.get_segments()
    ]


def test_spread_against_error_shows_images_with_draws_alone(sweep):
    plot = spread_plot(sweep)
    assert len(plot.axes) == 3
    points, diagonal = plot.axes[0].lines
    errors, spreads = points.get_xdata(), points.get_ydata()
    assert list(errors) == pytest.approx([10 ** (-(26.5 + 1.4 * place) / 20) for place in range(3)])
    assert [s / e for s, e in zip(spreads, errors, strict=True)] == pytest.approx([0.8, 0.85, 0.9])
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert not plot.legends
    assert min(sizes(plot)) >= 7


def test_a_grid_has_a_picture_a_cell_and_the_best_in_bold(sweep):
    jobs = [job for job in sweep.jobs if job.names["operator"] == "blur" and job.names["solver"] == "pnp_hqs"]
    (axes,) = picture_grid(jobs, "blur, pnp_hqs").axes
    assert len(axes.images) == 3 * 5
    shown = texts(axes)
    assert [text for text in shown if text in ("measurement", "gaussian", "tv", "natural", "truth")] == [
        *("measurement", "gaussian", "tv", "natural", "truth")
    ]
    assert [text.get_text() for text in axes.texts if text.get_weight() == "bold"] == [
        "26.00 dB",
        "28.10 dB",
        "30.20 dB",
    ]
    assert min(text.get_fontsize() for text in axes.texts) >= 7


def test_a_grid_says_what_it_leaves_out(sweep, tmp_path):
    jobs = [job for job in sweep.jobs if job.names["operator"] == "blur" and job.names["solver"] == "pnp_hqs"]
    (axes,) = picture_grid(jobs, "blur", most=2).axes
    assert "blur (1 more images not shown)" in texts(axes)
    assert len(axes.images) == 2 * 5
    (picture,) = [image.pictures / "mean.png" for image in list(jobs[0].images.values())[:1] if image.pictures]
    kept = picture.read_bytes()
    picture.unlink()
    try:
        (axes,) = picture_grid(jobs, "blur").axes
    finally:
        picture.write_bytes(kept)
    assert len(axes.images) == 3 * 5 - 1
    assert "no picture" in texts(axes)


def test_every_plot_is_written_and_what_is_not_drawn_is_said(tmp_path):
    write_job(tmp_path / "sweep", "one", figures=rows([20.0, 21.0]))
    write_job(tmp_path / "sweep", "two", prior="x" * 40, figures=rows([22.0, 23.0]), pictures=False)
    write_job(tmp_path / "sweep", "three", operator="mask", figures={"a": {"chi2": 1.0}}, pictures=False)
    sweep = read_sweep(tmp_path / "sweep")
    (tmp_path / "out").mkdir()
    missing = write_plots(sweep, dict.fromkeys(sweep.tasks()), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    plots = ("psnr_nfe", "psnr_seconds", "grid_1_blur__pnp_hqs")
    assert names == {f"{plot}.{kind}" for plot in plots for kind in ("pdf", "png")}
    assert missing == [
        "spread_error is not drawn: no job has several draws an image.",
        "The grid of mask, pnp_hqs is not drawn: its jobs kept no pictures.",
    ]
    assert (tmp_path / "out" / "psnr_nfe.pdf").read_bytes().startswith(b"%PDF")


def test_plots_say_what_they_are(sweep, tmp_path):
    write_plots(sweep, {task: best(jobs) for task, jobs in sweep.tasks().items()}, tmp_path)
    found = {path.stem: read(path) for path in tmp_path.glob("*.png")}
    assert len(found) > 3
    assert {stem: said.source for stem, said in found.items()} == {
        stem: "compositeSynthetic" if stem.startswith("grid") else "dataDrivenMedia" for stem in found
    }


def test_names_move_apart_only_where_they_overlap():
    near = _apart([(0.1, 0.50, 0.2), (0.1, 0.51, 0.2)], 0.1)
    assert near == pytest.approx([0.455, 0.555])
    assert _apart([(0.1, 0.50, 0.2), (0.6, 0.51, 0.2)], 0.1) == [0.50, 0.51]


def test_names_stay_in_the_panel_and_stand_right_of_a_column():
    low, high = _apart([(0.1, 0.0, 0.2), (0.1, 0.01, 0.2)], 0.1)
    assert low >= 0.05 - 1e-9
    assert high - low == pytest.approx(0.1, abs=0.01)
    assert _column_end(0.1, [0.9, 0.15, 0.1, 0.2, 0.3], 0.06) == 0.2
    assert _column_end(0.1, [0.15], 0.0) == 0.1


def test_passes_back_are_calls(tmp_path):
    figures = rows([20.0, 22.0], nfe=24)
    for row in figures.values():
        row["nfe_backward"] = 16
    write_job(tmp_path, "one", figures=figures, pictures=False)
    (axes,) = cost_plot(read_sweep(tmp_path), "nfe").axes
    assert axes.get_xlabel() == "denoiser calls and passes back, a draw"
    assert [float(x) for line in axes.lines for x in line.get_xdata()] == [40.0]


def test_the_best_of_one_is_not_bold():
    assert bold_best([1.0, None, 3.0], "{:.1f}") == [("1.0", "normal"), ("-", "normal"), ("3.0", "bold")]
    assert bold_best([1.0, 3.0], "{:.1f}", lowest=True)[0] == ("1.0", "bold")
    assert bold_best([1.0], "{:.1f}") == [("1.0", "normal")]
