"""Sweeps read back and compared: paired statistics, what is left out, and the sentences that say so."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from invdiff.cli import main
from invdiff.compare import best, difference, interval, leaders, mean, mean_interval, reference
from invdiff.compare_tables import markdown, notes, print_tables, references
from invdiff.sweep import FIGURES, Job, Sweep, read_sweep
from tests.sweeps import VERSIONS, rows, sha, write_job, write_sweep


def job(sweep: Sweep, path: str) -> Job:
    return next(job for job in sweep.jobs if job.path == path)


def remark(sweep: Sweep, start: str) -> str:
    found = [text for text in sweep.remarks if text.startswith(start)]
    assert len(found) == 1, sweep.remarks
    return found[0]


def test_a_difference_is_paired_by_the_images(tmp_path):
    first, second = [20.0, 31.0, 25.0, 28.5], [21.5, 30.0, 27.0, 29.0]
    write_job(tmp_path, "one", prior="tv", figures=rows(first))
    # The same images in another order: pairing by place would give other differences.
    write_job(tmp_path, "two", prior="natural", figures=dict(reversed(rows(second).items())))
    sweep = read_sweep(tmp_path)
    found = difference(job(sweep, "two"), job(sweep, "one"), "psnr_mean")
    gaps = np.subtract(second, first)
    assert found.images == 4
    assert found.value == pytest.approx(gaps.mean(), abs=1e-12)
    assert found.low < gaps.mean() < found.high
    back = difference(job(sweep, "one"), job(sweep, "two"), "psnr_mean")
    assert (back.value, back.low) == pytest.approx((-found.value, -found.high), abs=0.05)
    assert mean(job(sweep, "one"), "psnr_mean") == pytest.approx(np.mean(first))
    assert mean(job(sweep, "one"), "peak_mib") == 303
    assert math.isnan(mean(job(sweep, "one"), "crps"))


def test_the_interval_is_scipys_at_the_widened_level():
    values = np.random.default_rng(0).gamma(2.0, 1.0, 12)
    tail = stats.norm.cdf(-math.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, confidence_level=1 - 2 * tail, method="percentile", rng=1
    ).confidence_interval
    assert interval(values) == pytest.approx((wanted.low, wanted.high), abs=0.03)
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=1)


def test_the_interval_covers_where_images_are_few():
    drawn = np.random.default_rng(0).normal(size=(300, 6))
    plain = [stats.norm.interval(0.95, row.mean(), row.std() / math.sqrt(6)) for row in drawn]
    found = [interval(row) for row in drawn]
    covered = np.mean([low < 0 < high for low, high in found])
    assert covered >= 0.91
    assert covered > np.mean([low < 0 < high for low, high in plain])


def test_one_image_has_no_interval(tmp_path):
    assert all(math.isnan(end) for end in interval([3.0]))
    write_job(tmp_path, "one", figures=rows([20.0]))
    write_job(tmp_path, "two", prior="nlm", figures=rows([21.0]))
    sweep = read_sweep(tmp_path)
    assert all(math.isnan(end) for end in mean_interval(sweep.jobs[0], "psnr_mean"))
    found = difference(sweep.jobs[1], sweep.jobs[0], "psnr_mean")
    assert (found.value, found.images, math.isnan(found.low)) == (1.0, 1, True)
    assert "Intervals over 1 image say little: six or more are needed." in notes(sweep, references(sweep, None))


def test_unfinished_failed_and_damaged_jobs_are_named(tmp_path):
    write_sweep(tmp_path, ["blur"])
    write_job(tmp_path, "halfway", figures=rows([20.0]), done=False)
    (tmp_path / "sad").mkdir()
    (tmp_path / "sad" / "failed.json").write_text(json.dumps({"status": "not applicable", "sentence": "no SVD."}))
    (tmp_path / "worse").mkdir()
    (tmp_path / "worse" / "failed.json").write_text("{")
    write_job(tmp_path, "cut", prior="nlm", figures=rows([20.0]))
    (tmp_path / "cut" / "done.json").write_text('{"key": "a')
    write_job(tmp_path, "bare", prior="nlm", figures=rows([20.0]))
    (tmp_path / "bare" / "done.json").write_text('{"key": "a"}')
    write_job(tmp_path, "empty", prior="nlm", figures={})
    sweep = read_sweep(tmp_path)
    assert len(sweep.jobs) == 4
    assert remark(sweep, "halfway") == "halfway: not finished, left out; the same sweep again goes on with it."
    assert remark(sweep, "sad") == "sad: not applicable, left out (no SVD)."
    assert remark(sweep, "worse") == "worse: failed, left out (its failed.json cannot be read)."
    assert "cannot be read and is left out (Unterminated string" in remark(sweep, "cut")
    assert remark(sweep, "bare") == "bare: cannot be read and is left out (lacks 'names')."
    assert remark(sweep, "empty") == "empty: cannot be read and is left out (its figures.csv has no image)."


def test_pictures_and_draws_are_no_jobs(tmp_path):
    folder = write_job(tmp_path, "one", figures=rows([20.0]))
    for inner in ("draws.zarr", "pictures/a"):
        (folder / inner).mkdir(exist_ok=True)
        (folder / inner / "failed.json").write_text("{}")
    assert read_sweep(tmp_path).remarks == ()
    assert [job.path for job in read_sweep(folder).jobs] == ["."]


def test_a_protocol_that_was_not_followed_is_said(tmp_path):
    folder = write_job(tmp_path, "one", figures=rows([20.0]))
    record = json.loads((folder / "done.json").read_text())
    differs = {"name": "cbsd68_blur", "differs": ["noise.sigma is 0.05, not 0.02."]}
    (folder / "done.json").write_text(json.dumps(record | {"protocol": differs}))
    said = "one: differs from its protocol cbsd68_blur: noise.sigma is 0.05, not 0.02."
    assert read_sweep(tmp_path).remarks == (said,)


def test_other_versions_are_said(tmp_path):
    write_sweep(tmp_path, ["blur"])
    assert not read_sweep(tmp_path).remarks
    write_job(tmp_path, "old", prior="nlm", figures=rows([20, 21, 22]), versions={**VERSIONS, "torch": "2.5.1"})
    assert read_sweep(tmp_path).remarks == (
        "The jobs differ in torch: 4 with 2.6.0, 1 with 2.5.1; seconds and last digits may differ by that.",
    )


def test_mixed_image_sets_are_said_and_only_shared_images_compared(tmp_path):
    write_job(tmp_path, "all", prior="tv", figures=rows([20.0, 22.0, 27.0]))
    write_job(tmp_path, "some", prior="natural", figures=rows([21.0, 24.0]))
    other = rows([30.0, 30.0, 30.0])
    for name in other:
        other[name]["sha256"] = sha(f"other crop of {name}")
    write_job(tmp_path, "crop", prior="nlm", figures=other)
    sweep = read_sweep(tmp_path)
    assert difference(job(sweep, "some"), job(sweep, "all"), "psnr_mean").value == 1.5
    assert difference(job(sweep, "some"), job(sweep, "all"), "psnr_mean").images == 2
    apart = difference(job(sweep, "crop"), job(sweep, "all"), "psnr_mean")
    assert (apart.images, math.isnan(apart.value)) == (0, True)
    assert (
        remark(sweep, "a has") == "a has other pixels in all and crop: these are different images and are not paired."
    )
    text = remark(sweep, "blur")
    assert "not all jobs have the same 6 images (tv / pnp_hqs lacks 3, nlm / pnp_hqs lacks 3, natural" in text


def test_strange_figures_and_images_twice_count_nowhere(tmp_path):
    figures = rows([20.0, 22.0, 30.0])
    figures["b"]["psnr_mean"] = "inf"
    figures["c"]["sha256"] = sha("a")
    write_job(tmp_path, "one", figures=figures)
    sweep = read_sweep(tmp_path)
    assert mean(sweep.jobs[0], "psnr_mean") == 20.0
    assert sweep.remarks == (
        "one: psnr_mean of b is not a finite number and counts nowhere.",
        "one: c has the pixels of a and counts once, as the first.",
    )


def test_namesakes_are_told_apart_by_what_differs(tmp_path):
    for lam in (0.1, 0.23):
        settings = {"solver": {"name": "pnp_hqs", "lam": lam, "steps": 24}}
        write_job(tmp_path, f"lam_{lam}", figures=rows([20.0]), settings=settings)
    for seed in (0, 1):
        write_job(tmp_path, f"seed_{seed}", prior="nlm", figures=rows([20.0]), settings={"seed": seed})
    write_job(tmp_path, "seed_1_again", prior="nlm", figures=rows([20.0]), settings={"seed": 1})
    sweep = read_sweep(tmp_path)
    methods = {job.path: job.method for job in sweep.jobs}
    assert methods["lam_0.1"] == "tv / pnp_hqs lam=0.1 steps=24"
    assert methods["lam_0.23"] == "tv / pnp_hqs lam=0.23 steps=24"
    assert len(set(methods.values())) == 4
    assert remark(sweep, "seed_1_again") == "seed_1_again: has the same settings as seed_1 and is left out."


def test_namesakes_stand_in_the_order_of_their_numbers(tmp_path):
    for steps in (20, 100, 5):
        settings = {"solver": {"steps": steps}}
        write_job(tmp_path, f"a{steps}", figures=rows([20.0]), settings=settings, pictures=False)
    write_job(tmp_path, "last", prior="natural", figures=rows([20.0]), pictures=False)
    write_job(tmp_path, "weak", prior="gaussian", figures=rows([20.0]), pictures=False)
    assert [job.path for job in read_sweep(tmp_path).jobs] == ["weak", "a5", "a20", "a100", "last"]


def test_the_reference(tmp_path):
    write_sweep(tmp_path, ["blur"])
    jobs = read_sweep(tmp_path).jobs
    assert best(jobs).method == "natural / pnp_hqs"
    assert reference(jobs, None).method == "natural / pnp_hqs"
    assert reference(jobs, "tv").method == "tv / pnp_hqs"
    assert reference(jobs, "ddrm").method == "natural / ddrm"
    assert reference(jobs, "natural/ddrm").method == "natural / ddrm"
    assert reference(jobs, "bm3d") is None
    with pytest.raises(ValueError, match=r"'natural' fits 2 jobs of blur: give one of natural / ddrm, natural / pnp"):
        reference(jobs, "natural")


def test_a_reference_that_one_task_lacks(tmp_path):
    write_sweep(tmp_path)
    write_job(tmp_path, "mask_nlm", operator="mask", prior="nlm", figures=rows([20.0] * 3))
    sweep = read_sweep(tmp_path)
    found = notes(sweep, references(sweep, "tv"))
    assert "mask: the reference has no finished job there, so no differences." in found
    with pytest.raises(
        ValueError, match="No finished job fits the reference 'bm3d': choose from gaussian / pnp_hqs, nat"
    ):
        references(sweep, "bm3d")


def test_the_command_writes_tables_of_every_job(tmp_path, capsys):
    write_sweep(tmp_path / "sweep", ["blur"], pictures=False)
    write_job(tmp_path / "sweep", "halfway", figures=rows([20.0]), done=False, pictures=False)
    assert main(["compare", str(tmp_path / "sweep"), "--out", str(tmp_path / "out"), "--reference", "tv"]) == 0
    printed = capsys.readouterr().out
    assert "halfway: not finished, left out" in printed
    assert "LPIPS: not computed: no weights." in printed
    assert "differences from tv / pnp_hqs" in printed
    assert "Spreads: uncalibrated spread (natural / ddrm)." in printed
    with (tmp_path / "out" / "table.csv").open() as handle:
        table = list(csv.DictReader(handle))
    assert len(table) == 4
    assert set(FIGURES) <= set(table[0])
    by_job = {row["job"]: row for row in table}
    assert float(by_job["blur_natural_ddrm"]["psnr_mean"]) == pytest.approx(27.9)
    assert by_job["blur_natural_ddrm"]["draws"] == "8"
    assert by_job["blur_tv_pnp_hqs"]["crps"] == ""
    with (tmp_path / "out" / "differences.csv").open() as handle:
        gaps = [row for row in csv.DictReader(handle) if row["figure"] == "psnr_mean" and row["prior"] == "gaussian"]
    assert [float(row["difference"]) for row in gaps] == pytest.approx([-2.3])
    assert [row["paired_images"] for row in gaps] == ["3"]
    assert "| gaussian | pnp_hqs | -2.30 [" in (tmp_path / "out" / "table.md").read_text()
    assert main(["compare", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]) == 2
    assert "not empty: choose another, or add --overwrite" in capsys.readouterr().err


def test_weights_of_lpips_make_a_column(tmp_path):
    figures = rows([20.0, 22.0])
    for row in figures.values():
        row["lpips"] = 0.25
    write_job(tmp_path, "one|two", prior="a|<b>", figures=figures)
    sweep = read_sweep(tmp_path)
    text = markdown(sweep, references(sweep, None))
    assert "| LPIPS |" in text
    assert "not computed" not in text
    assert "| a\\|&lt;b> | pnp_hqs | 2 | 21.00 | 0.525 | 0.250 | 24 |" in text


def test_the_best_and_what_cannot_be_told_from_it_are_bold(tmp_path, capsys):
    first = [20.0, 31.0, 25.0, 28.5, 22.0, 24.0]
    for name, gaps in {"clear": [-1.0] * 6, "best": [0.0] * 6, "near": [0.4, -0.5, 0.3, -0.2, 0.1, -0.3]}.items():
        psnrs = [psnr + gap for psnr, gap in zip(first, gaps, strict=True)]
        write_job(tmp_path, name, prior=name, figures=rows(psnrs), pictures=False)
    drawn = rows([psnr - 3 for psnr in first], draws=8)
    write_job(tmp_path, "draws", prior="draws", solver="kps", figures=drawn, pictures=False)
    sure = rows([psnr - 4 for psnr in first], draws=8)
    for row in sure.values():
        row |= {"coverage90": 0.99, "spread_skill": 1.1}
    write_job(tmp_path, "sure", prior="sure", solver="kps", figures=sure, pictures=False)
    sweep = read_sweep(tmp_path)
    found = {figure: [job.path for job in leaders(sweep.jobs, figure)] for figure in FIGURES}
    assert found == {figure: [] for figure in FIGURES} | {
        "psnr_mean": ["best", "near"],
        "psnr_draw": ["draws"],
        "ssim_mean": ["best", "near"],
        "ssim_draw": ["draws"],
        "crps": ["draws"],
        "coverage90": ["draws"],
        "spread_skill": ["draws"],
    }
    text = markdown(sweep, references(sweep, None))
    assert "| near | pnp_hqs | 6 | **25.05** | - | **0.626** |" in text
    assert "| clear | pnp_hqs | 6 | 24.08 | - | 0.602 |" in text
    assert "Bold, from six shared images on: the best mean of PSNR" in text
    print_tables(sweep, references(sweep, None))
    assert "**" not in capsys.readouterr().out
    assert leaders(sweep.jobs[:1], "psnr_mean") == []


def test_few_images_tell_nothing_apart(tmp_path):
    first = [20.0, 31.0, 25.0, 28.5, 22.0, 24.0]
    for count in (1, 2, 5, 6):
        for name, gap in (("one", 0.0), ("two", 0.1)):
            psnrs = [psnr + gap for psnr in first[:count]]
            write_job(tmp_path / str(count), name, prior=name, figures=rows(psnrs), pictures=False)
        bold = [job.path for job in leaders(read_sweep(tmp_path / str(count)).jobs, "psnr_mean")]
        assert bold == (["two"] if count == 6 else [])


def test_the_best_is_that_of_the_shared_images(tmp_path):
    first = [20.0, 31.0, 25.0, 28.5, 22.0, 24.0, 10.0]
    write_job(tmp_path, "all", prior="all", figures=rows(first, draws=8), pictures=False)
    # Worse on each of its images, and better on average as it lacks the worst of them.
    write_job(tmp_path, "some", prior="some", figures=rows([p - 1 for p in first[:6]], draws=8), pictures=False)
    jobs = read_sweep(tmp_path).jobs
    assert mean(jobs[1], "psnr_mean") > mean(jobs[0], "psnr_mean")
    assert [job.path for job in leaders(jobs, "psnr_mean")] == ["all"]
    # They are as near to what is right.
    assert [job.path for job in leaders(jobs, "coverage90")] == ["all", "some"]


def test_chi2_stands_with_draws_alone(tmp_path):
    write_job(tmp_path, "point", figures=rows([20.0]), pictures=False)
    point = read_sweep(tmp_path)
    assert "| chi2 |" not in markdown(point, references(point, None))
    write_job(tmp_path, "drawn", solver="kps", figures=rows([19.0], draws=8), pictures=False)
    sweep = read_sweep(tmp_path)
    lines = markdown(sweep, references(sweep, None)).splitlines()
    heads, _, *cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][:4]
    assert {row[1]: row[heads.index("chi2")] for row in cells} == {"pnp_hqs": "-", "kps": "1.10"}
    # The whole of it is kept.
    assert mean(job(sweep, "point"), "chi2") == 1.1


def test_numbers_are_short_and_zero_has_no_sign(tmp_path):
    first = rows([20.0, 21.0], seconds=0.0871)
    second = rows([20.004, 20.995], seconds=1234.5)
    write_job(tmp_path, "one", prior="tv", figures=first, pictures=False)
    write_job(tmp_path, "two", prior="nlm", figures=second, pictures=False)
    sweep = read_sweep(tmp_path)
    text = markdown(sweep, references(sweep, "tv"))
    assert "-0.00" not in text
    assert "+0.00" not in text
    assert "| nlm | pnp_hqs | 0.00 [" in text
    assert "| 24 | 0.091 | 301 |" in text
    assert "| 24 | 1296 | 301 |" in text


def test_headings_name_what_was_set_of_operator_and_data(tmp_path):
    settings = {
        "operator": {"_target_": "Blur", "kernel": {"_target_": "gaussian_psf", "sigma": 2.0, "size": None}},
        "noise": {"_target_": "GaussianNoise", "sigma": 0.02},
        "data": {"_target_": "Skimage", "images": ["astronaut", "coffee"], "crop": 96},
    }
    write_job(tmp_path, "one", figures=rows([20.0]), settings=settings, pictures=False)
    sweep = read_sweep(tmp_path)
    assert sweep.heading(sweep.jobs[0].task) == "blur kernel.sigma=2, gaussian noise sigma=0.02, skimage crop=96"


def test_headings_name_the_noise_level(tmp_path):
    for place, sigma in enumerate((0.02, 0.05)):
        settings = {"noise": {"_target_": "invdiff.noise.GaussianNoise", "sigma": sigma}}
        write_job(tmp_path, f"{place}", figures=rows([20.0]), settings=settings, pictures=False)
    sweep = read_sweep(tmp_path)
    text = markdown(sweep, references(sweep, None))
    assert "## blur, gaussian noise sigma=0.02, skimage\n" in text
    assert "## blur, gaussian noise sigma=0.05, skimage\n" in text
    write_job(tmp_path / "bare", "one", figures=rows([20.0]), settings={"noise": None}, pictures=False)
    bare = read_sweep(tmp_path / "bare")
    assert "## blur, gaussian noise, skimage\n" in markdown(bare, references(bare, None))


def test_plots_of_an_earlier_time_do_not_stay(tmp_path, monkeypatch):
    write_job(tmp_path, "one", figures=rows([20.0, 22.0]))
    drawn = iter((("psnr_nfe.pdf", "grid_1_blur__tv.png"), ("psnr_nfe.pdf",)))

    def draw(sweep: Sweep, against: object, folder: Path) -> list[str]:
        for name in next(drawn):
            (folder / name).write_text("plot")
        return []

    monkeypatch.setattr("invdiff.compare_plots.write_plots", draw)
    for count in (2, 1):
        assert main(["compare", str(tmp_path)]) == 0
        (tmp_path / "compare" / "notes.md").write_text("mine")
        names = {path.name for path in (tmp_path / "compare").iterdir()} - {"notes.md"}
        assert len(names - {"table.csv", "table.md", "differences.csv"}) == count


def test_what_is_no_sweep(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder: give the folder that the sweep was written to." in capsys.readouterr().err
    assert main(["compare", str(tmp_path)]) == 2
    said = f"invdiff: {tmp_path} has no finished job to compare: no folder in it holds done.json.\n"
    assert capsys.readouterr().err == said
    write_job(tmp_path, "halfway", figures=rows([20.0]), done=False)
    assert main(["compare", str(tmp_path)]) == 2
    assert "no finished job to compare: halfway: not finished" in capsys.readouterr().err
    assert not (tmp_path / "compare").exists()


def test_an_images_name_does_not_lead_out_of_its_job(tmp_path: Path):
    write_job(tmp_path, "one", figures=rows([20.0]))
    figures = {"../../one/pictures/a": rows([20.0])["a"]}
    write_job(tmp_path, "two", prior="nlm", figures=figures, pictures=False)
    sweep = read_sweep(tmp_path)
    assert job(sweep, "one").images[sha("a")].pictures is not None
    assert next(iter(job(sweep, "two").images.values())).pictures is None
