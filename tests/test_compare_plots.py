"""Plots of a sweep: as many panels as there is to show, every prior named, letters that can be read."""

from __future__ import annotations

import pytest

from invdiff.compare import best
from invdiff.compare_grid import bold_best, picture_grid
from invdiff.compare_labels import Name, Panel, log_ticks, place_names
from invdiff.compare_plots import cost_plot, spread_plot, write_plots
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
        assert sorted(texts(axes)) == ["gaussian", "natural", "natural", "tv"]
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
    assert said(plot).startswith("A mark an image. Grey line: the spread is as large as the error;")
    assert not plot.legends[0].get_texts()
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


def test_plots_say_what_they_are(tmp_path):
    write_job(tmp_path, "one", prior="natural", solver="kps", figures=rows([20.0], draws=8))
    sweep = read_sweep(tmp_path)
    write_plots(sweep, dict.fromkeys(sweep.tasks()), tmp_path)
    found = {path.stem: read(path) for path in tmp_path.glob("*.png")}
    assert len(found) == 4
    assert {stem: said.source for stem, said in found.items()} == {
        stem: "compositeSynthetic" if stem.startswith("grid") else "dataDrivenMedia" for stem in found
    }


def boxes(labels):
    return [label.get_window_extent().extents for label in labels]


def shared(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def test_names_hide_neither_each_other_nor_a_mark(tmp_path):
    """Eight priors in a column of the same number of calls, some of them nearly as good."""
    for place, psnr in enumerate((20.0, 20.02, 20.04, 20.06, 24.0, 24.05, 25.0, 25.01)):
        figures = rows([psnr, psnr + 3 + 0.1 * place])
        write_job(tmp_path, f"{place}", prior=f"bilateral{place}", figures=figures, pictures=False)
    plot = cost_plot(read_sweep(tmp_path), "nfe")
    plot.draw_without_rendering()
    (axes,) = plot.axes
    labels = axes.texts
    assert len(labels) == 8
    found = boxes(labels)
    for number, box in enumerate(found):
        assert not any(shared(box, other) for other in found[:number])
        assert shared(box, axes.bbox.extents) == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))
    marks = [axes.transData.transform(point) for line in axes.lines for point in line.get_xydata()]
    assert len(marks) == 8
    assert not [1 for x, y in marks for box in found if shared(box, (x - 3, y - 3, x + 3, y + 3))]
    # None wanders further than is needed.
    assert all(abs(label.xyann[1]) < 60 for label in labels)


def test_a_name_alone_stands_right_of_its_point():
    from matplotlib.figure import Figure

    plot = Figure()
    axes = plot.subplots()
    axes.plot([0, 1], [0, 1])
    (text,) = place_names(Panel(axes, [Name("tv", 0.5, 0.5, "red")], [(0.5, 0.5)]))
    (left, low, _, high) = text.get_window_extent().extents
    x, y = axes.transData.transform((0.5, 0.5))
    assert 3 < left - x < 12
    assert low < y < high
    assert text.arrow_patch is None
    assert not place_names(Panel(axes, [], []))


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [
        ((0.9, 12), [1, 2, 5, 10]),
        ((0.013, 0.09), [0.02, 0.03, 0.05]),
        ((22, 47), [25, 30, 35, 40, 45]),
        ((0.03, 2e4), [0.1, 1, 10, 100, 1000, 10000]),
    ],
)
def test_logarithmic_axes_have_round_numbers(ends, wanted):
    assert log_ticks(*ends) == pytest.approx(wanted)


def test_numbers_of_an_axis_are_written_plainly(sweep):
    for plot in (cost_plot(sweep, "seconds"), spread_plot(sweep)):
        for axes in plot.axes:
            shown = [text.get_text() for text in axes.get_xticklabels()]
            assert len(shown) >= 3
            assert all(float(text) > 0 and "10^" not in text and "e" not in text for text in shown)


def said(plot):
    (legend,) = plot.legends
    return " ".join(legend.get_title().get_text().split())


def test_a_figure_says_what_its_marks_and_bars_are(sweep, tmp_path):
    marks = "Marks: means over 3 images."
    chosen = {task: best(jobs) for task, jobs in sweep.tasks().items()}
    bars = "Bars: 95 % intervals over images of the difference from natural / pnp_hqs (no bar)."
    beside = "Equal numbers of calls stand side by side."
    assert said(cost_plot(sweep, "nfe", chosen)) == f"{marks} {bars} {beside}"
    assert said(cost_plot(sweep, "seconds", dict.fromkeys(chosen))) == marks
    other = dict(zip(chosen, [job for jobs in sweep.tasks().values() for job in jobs[:1]], strict=True))
    mixed = {task: (chosen if place else other)[task] for place, task in enumerate(chosen)}
    assert "of the difference from the reference of each panel (no bar)." in said(cost_plot(sweep, "seconds", mixed))
    write_job(tmp_path, "one", figures=rows([20.0]), pictures=False)
    assert said(cost_plot(read_sweep(tmp_path), "nfe")) == "Marks: means over 1 image."


def test_the_axes_of_draws_and_of_estimates(sweep, tmp_path):
    def labels(found, figure="nfe"):
        axes = cost_plot(found, figure).axes[0]
        return axes.get_xlabel(), axes.get_ylabel()

    assert labels(sweep) == ("denoiser calls per draw or estimate", "PSNR of mean or estimate, dB")
    assert labels(sweep, "seconds")[0] == "seconds per image, all its draws"
    write_job(tmp_path / "a", "one", figures=rows([20.0]), pictures=False)
    assert labels(read_sweep(tmp_path / "a")) == ("denoiser calls per estimate", "PSNR, dB")
    assert labels(read_sweep(tmp_path / "a"), "seconds")[0] == "seconds per image"
    write_job(tmp_path / "b", "one", figures=rows([20.0], draws=4), pictures=False)
    assert labels(read_sweep(tmp_path / "b")) == ("denoiser calls per draw", "PSNR of the mean, dB")


def test_many_curves_name_each_prior_once(tmp_path):
    for prior in ("tv", "natural"):
        for place in range(7):
            figures = rows([20.0 + place], nfe=10 + place)
            write_job(tmp_path, f"{prior}{place}", prior=prior, solver=f"s{place}", figures=figures, pictures=False)
    (axes,) = cost_plot(read_sweep(tmp_path), "nfe").axes
    assert sorted(texts(axes)) == ["natural", "tv"]


def test_nothing_of_a_panel_alone_leaves_its_figure(tmp_path):
    """Also with a long line below and the marks of several solvers."""
    for solver in ("pnp_hqs", "kps"):
        figures = rows([20.0, 22.0], draws=8 * (solver == "kps"))
        write_job(tmp_path, solver, solver=solver, figures=figures, pictures=False)
    plot = cost_plot(read_sweep(tmp_path), "nfe")
    (axes,) = plot.axes
    whole = plot.bbox.extents
    for part in (axes.yaxis.label, axes.xaxis.label, plot.legends[0]):
        left, low, right, high = part.get_window_extent().extents
        assert whole[0] <= left < right <= whole[2]
        assert whole[1] <= low < high <= whole[3]


def test_passes_back_are_calls(tmp_path):
    figures = rows([20.0, 22.0], nfe=24)
    for row in figures.values():
        row["nfe_backward"] = 16
    write_job(tmp_path, "one", figures=figures, pictures=False)
    (axes,) = cost_plot(read_sweep(tmp_path), "nfe").axes
    assert axes.get_xlabel() == "denoiser calls and passes back per estimate"
    assert [float(x) for line in axes.lines for x in line.get_xdata()] == [40.0]


def test_the_best_of_one_is_not_bold():
    assert bold_best([1.0, None, 3.0], "{:.1f}") == [("1.0", "normal"), ("-", "normal"), ("3.0", "bold")]
    assert bold_best([1.0, 3.0], "{:.1f}", lowest=True)[0] == ("1.0", "bold")
    assert bold_best([1.0], "{:.1f}") == [("1.0", "normal")]
