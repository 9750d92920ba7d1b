"""The tables of benchmarks/README.md are those of the tracked results, and every script it names is there."""

from __future__ import annotations

import re

import pytest

from benchmarks import tables

TEXT = tables.PAGE.read_text()


def test_the_page_is_what_the_results_say():
    assert tables.page(TEXT) == TEXT, "run python -m benchmarks.tables"


def test_every_table_is_on_the_page():
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
    assert {row["test_images"] for row in rows} == {"13"}
    assert "13 crops" in text
    recalibrated = [row for row in rows if row["state"] == "crc"]
    assert {row["calibration_images"] for row in recalibrated} == {"23"}
    assert "on 23 photographs" in text
    covered = [100 * float(row["coverage_90"]) for row in recalibrated]
    assert (round(min(covered)), round(max(covered))) == (88, 98)


def test_a_table_nobody_knows_is_an_error():
    with pytest.raises(KeyError):
        tables.page("<!-- unknown -->\n<!-- end -->")
