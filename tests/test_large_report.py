"""docs/large.md says what the tracked results say, and they keep what was promised of large images."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "large.md").read_text(encoding="utf-8")


def rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / name).open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


RUNS = rows("large.csv")
DIFFERENCES = rows("large_overlap.csv")


@pytest.mark.parametrize("row", RUNS, ids=lambda row: f"{row['operator']} {row['megapixels']}")
def test_every_run_stands_in_the_page(row):
    names = ("megapixels", "operator", "steps", "draws", "seconds", "processor_seconds")
    cells = [row[name] for name in (*names, "peak_mib", "peak_with_files_mib")]
    assert "| " + " | ".join(cells) + " |" in PAGE


def test_twelve_megapixels_stay_within_eight_gib():
    large = {row["operator"]: row for row in RUNS if float(row["megapixels"]) >= 12}
    assert {"mask", "blur"} <= set(large)
    for row in large.values():
        assert int(row["draws"]) >= 2
        assert int(row["peak_with_files_mib"]) < 8192


def test_every_difference_of_a_call_stands_in_the_page():
    calls = [row for row in DIFFERENCES if row["what"] == "call"]
    sigmas = {row["sigma"] for row in calls}
    assert len(sigmas) == 8
    for precision in ("float32", "bfloat16"):
        for sigma in sigmas:
            line = [row["rms"] for row in calls if (row["sigma"], row["precision"]) == (sigma, precision)]
            assert len(line) == 5
            assert f"| {precision} | {float(sigma):g} | " + " | ".join(line) + " |" in PAGE


def test_the_default_overlap_and_three_quarters_of_it_change_less_than_a_thousandth():
    for row in DIFFERENCES:
        if row["overlap"] in ("96", "136"):
            assert float(row["rms"]) < 1e-3
        if row["what"] == "call" and row["overlap"] == "136" and row["precision"] == "float32":
            assert float(row["rms"]) < 1e-6
