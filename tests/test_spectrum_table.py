"""The spectrum of priors: its figure has every cell, and its table is that of the tracked figures."""

from __future__ import annotations

import pytest

from benchmarks.spectrum import BEGIN, COLUMNS, END, PAGE, RESULTS, ROWS, figure, read_rows, table, write_rows, written
from invdiff.sweep import read_sweep
from tests.sweeps import rows, write_job

PRIORS = ("gaussian", "median", "tv", "natural")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("spectrum")
    for shift, (operator, _, photograph) in enumerate(ROWS):
        for step, prior in enumerate((*PRIORS, "natural")):
            solver = "kps" if step == 4 else "pnp_admm"
            levels = [20.0 - shift + step * (1 + image % 2) for image in range(6)]
            figures = rows(levels, draws=8 * (step == 4))
            named = {photograph if image == "a" else image: row for image, row in figures.items()}
            write_job(
                folder, f"{operator}_{prior}_{solver}", operator=operator, prior=prior, solver=solver, figures=named
            )
    return read_sweep(folder)


def test_the_figure_has_tasks_in_rows_and_priors_between_measurement_and_truth(sweep):
    (axes,) = figure(sweep).axes
    texts = [text.get_text().replace("\n", " ") for text in axes.texts]
    assert len(axes.images) == 4 * 6
    heads = ["measurement", "gaussian", "tv", "natural", "natural, mean of its draws", "truth"]
    assert [text for text in texts if text in heads] == heads
    assert [text for text in texts if text in [title for _, title, _ in ROWS]] == [title for _, title, _ in ROWS]
    bold = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    assert bold == ["24.00", "23.00", "22.00", "21.00"]
    assert min(text.get_fontsize() for text in axes.texts) >= 7


def test_a_task_without_its_photograph_is_named(tmp_path):
    write_job(tmp_path, "one", operator="blur", figures=rows([20.0]))
    with pytest.raises(ValueError, match=rf"The sweep has no {ROWS[0][2]} of blur \(deblurring\): run the lines of"):
        figure(read_sweep(tmp_path))


def test_the_rows_come_back_and_make_the_table(sweep, tmp_path):
    write_rows(sweep, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    jobs = read_rows(tmp_path / "rows.csv")
    assert table(jobs) == table(sweep.jobs)
    lines = table(jobs).splitlines()
    assert len(lines) == 2 + 5
    assert lines[-2] == "| natural | 24.50 | 23.50 | 22.50 | 21.50 |"
    assert lines[-1].startswith("| natural, draws (`kps`) | **26.00** (+1.00 to +2.00) |")


def test_the_page_holds_the_table_of_the_tracked_figures():
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert written(page, table(read_rows(RESULTS))) == page, "run python -m benchmarks.spectrum"
