"""The tables of the pages of benchmarks/ are those of the tracked results, and every script it names is there."""

from __future__ import annotations

import argparse
import re

import pytest

from benchmarks import rows, speed, tables

TEXT = "\n".join(path.read_text() for path in tables.PAGES)


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_a_page_is_what_the_results_say(path):
    assert tables.page(path.read_text()) == path.read_text(), "run python -m benchmarks.tables"


def test_every_table_is_on_a_page():
    assert set(re.findall(r"<!-- (\w+) -->", TEXT)) == {*tables.TABLES, "end"}


def test_every_script_it_names_is_there():
    named = re.findall(r"benchmarks\.(\w+)", TEXT) + re.findall(r"`\.(\w+)[ `]", TEXT)
    assert len(named) > 10
    for name in named:
        assert (tables.ROOT / f"{name}.py").is_file(), name


def test_the_rows_of_the_readme_are_rows_of_the_page():
    readme = (tables.ROOT.parent / "README.md").read_text()
    section = readme.split("## Against deepinv and azula")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 5
    assert set(rows) <= set(TEXT.splitlines())


def test_what_the_page_on_calibration_says_of_photographs():
    rows = [row for row in tables.read("calibration.csv") if row["tested_on"] == "CBSD68 and Kodak24"]
    text = " ".join((tables.ROOT.parent / "docs" / "calibration.md").read_text().split("## On photographs")[1].split())
    for solver, name in {"kps": "KPS", "ddrm": "DDRM", "diffpir": "DiffPIR", "pigdm": "PiGDM"}.items():
        own = [row for row in rows if (row["solver"], row["state"]) == (solver, "uncalibrated")]
        first, second, third, last = (f"{100 * float(row['coverage_90']):.0f}" for row in own)
        assert f"{name} {first}, {second}, {third} and {last} %" in text
    assert {row["test_images"] for row in rows} == {"92"}
    assert "92 images" in text
    recalibrated = [row for row in rows if row["state"] == "crc"]
    assert {row["calibration_images"] for row in recalibrated} == {"168"}
    assert "on 168 photographs" in text
    every = tables.read("calibration.csv")
    for on, state, span in (
        ("CBSD68 and Kodak24", "crc", "all four cover 87 to 95 %"),
        ("CBSD68 and Kodak24", "rcps", "covers 92 to 97 % of the two sets"),
        ("held-out half", "crc", "intervals cover 91 to 94 % of the other 87"),
    ):
        covered = [100 * float(r["coverage_90"]) for r in every if (r["tested_on"], r["state"]) == (on, state)]
        assert f"{min(covered):.0f} to {max(covered):.0f} %" in span
        assert span in text
    crps = {(r["task"], r["solver"], r["state"]): float(r["crps"]) for r in rows}
    for task in ("blur", "down4", "inpaint"):
        assert min(["kps", "ddrm", "diffpir", "pigdm"], key=lambda name: crps[task, name, "uncalibrated"]) == "kps"
    for task, name in (("blur", "pigdm"), ("blur", "kps"), ("down4", "pigdm"), ("down4", "kps"), ("inpaint", "kps")):
        assert f"{crps[task, name, 'crc']:.4f}" in text


def test_a_table_nobody_knows_is_an_error():
    with pytest.raises(KeyError):
        tables.page("<!-- unknown -->\n<!-- end -->")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    def write(*found):
        rows.write(
            tmp_path / "speed.csv", speed.COLUMNS, [dict(zip(speed.COLUMNS, row, strict=False)) for row in found]
        )

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return write


def test_a_draw_is_held_against_its_passes_through_the_network(measured):
    measured(
        ("forward", "bare", "forward", "invdiff", "bfloat16", "256", "1", "1", "0.1"),
        ("forward", "bare", "forward+back", "invdiff", "bfloat16", "256", "1", "1", "0.25"),
        ("draw", "ddrm", "blur", "invdiff", "bfloat16", "256", "1", "4", "0.5"),
        ("draw", "dps", "blur", "invdiff", "bfloat16", "256", "1", "4", "2"),
        ("ensemble", "ddrm", "blur", "invdiff", "bfloat16", "256", "16", "4", "8"),
        ("draw", "ddrm", "blur", "invdiff", "bfloat16", "64", "1", "4", "0.5"),
    )
    assert [line.split(" | ")[-1] for line in tables.limit()[2:]] == ["1.25 |", "2.00 |", "1.25 |"]


def test_the_share_of_a_step_and_the_ratio_of_memory(measured):
    measured(
        ("outside", "ddrm", "blur", "invdiff", "none", "256", "1", "20", "2.5", "ms a step", "4.00"),
        ("draw", "ddrm", "blur", "invdiff", "bfloat16", "256", "1", "4", "0.5", "s", "2.00"),
        ("memory", "ddrm", "blur", "invdiff", "bfloat16", "256", "16", "2", "500", "MiB", ""),
        ("memory", "ddrm", "blur", "deepinv", "float32", "256", "16", "2", "750", "MiB", ""),
    )
    assert [line.split(" | ")[-2:] for line in tables.speed()[2:]] == [
        ["2.00", "- |"],
        ["4.00", "2.0 % |"],
        ["1.50", "- |"],
    ]


def test_the_exponent_is_that_of_a_line_through_the_logarithms(measured):
    head = ("curve", "ddrm", "blur", "invdiff", "bfloat16 by side")
    measured(*((*head, str(side), "1", "4", str(1e-5 * side**2)) for side in (128, 256, 1024)))
    assert tables.curve()[2].startswith("| side | 4 | 128: 0.164, ")
    assert tables.curve()[2].endswith(" | 2.00 |")


def test_a_part_measured_anew_leaves_the_other_rows(tmp_path, monkeypatch):
    made = [{"part": "outside", "solver": "ddrm", "value": "1"}, {"part": "curve", "solver": "ddrm", "value": "2"}]
    monkeypatch.setattr(speed, "rows", lambda settings: iter(made))
    speed.main(["--out", str(tmp_path / "speed.csv")])
    made[:] = [{"part": "outside", "solver": "ddrm", "value": "3"}]
    speed.main(["--out", str(tmp_path / "speed.csv")])
    assert [row["value"] for row in rows.read(tmp_path / "speed.csv")] == ["3", "2"]


def test_rows_of_a_gpu_take_the_place_of_none_of_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "speed.csv")
    monkeypatch.setattr(speed, "environment", lambda device: {"git_commit": "0"})
    monkeypatch.setattr(speed, "machine", lambda device: {"device": str(device)})
    monkeypatch.setattr(speed, "rows", lambda settings: iter([{"part": "draw", "value": "1"}]))
    for device in ("cpu", "cuda"):
        speed.main(["--device", device])
    assert [rows.read(tmp_path / name)[0]["device"] for name in ("speed.csv", "speed_cuda.csv")] == ["cpu", "cuda"]


def test_memory_of_a_process_is_measured_on_the_cpu_alone_and_quickly_of_one_pair(monkeypatch):
    monkeypatch.setattr(speed, "memory_rows", lambda *_: iter([{"part": "memory"}]))
    for device, quick, count in (("cpu", False, 2), ("cpu", True, 1), ("cuda", False, 0)):
        head = {"solvers": ["ddrm"], "tasks": ["blur", "gray"], "parts": ["memory"], "size": 8, "nfe": 2}
        assert len(list(speed.rows(argparse.Namespace(**head, device=device, quick=quick)))) == count


def test_the_table_of_denoising_has_a_column_a_level(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.denoising() == []
    head = ("prior", "sigma_255", "psnr", "images", "seconds_per_image")
    found = [("a", "15", "30.124", "68", "0.1"), ("a", "25", "28", "68", "0.3"), ("b", "15", "29", "4", "1")]
    rows.write(tmp_path / "denoising.csv", head, [dict(zip(head, row, strict=True)) for row in found])
    assert tables.denoising()[2:] == ["| a | 68 | 30.12 | 28.00 | 0.20 |", "| b | 4 | 29.00 | - | 1.00 |"]
