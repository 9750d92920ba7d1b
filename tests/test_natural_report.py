"""What README and model card say of the prior that ships is what the tables of results hold."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import curve
from invdiff.priors import load

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CARD = (ROOT / "docs" / "natural.md").read_text()


def rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / name).open(newline="") as handle:
        return list(csv.DictReader(handle))


def decibels(prior: str) -> str:
    """The cells of a table: PSNR at 15, 25 and 50 of 255."""
    found = {row["sigma_255"]: float(row["psnr"]) for row in rows("denoising.csv") if row["prior"] == prior}
    return " | ".join(f"{found[level]:.2f}" for level in ("15", "25", "50"))


@pytest.mark.parametrize("prior", ["natural", "dncnn", "ffdnet", "wavelet", "tv"])
def test_the_denoising_table(prior):
    assert {row["images"] for row in rows("denoising.csv")} == {"68"}
    assert f"| {decibels(prior)} |" in README
    assert f"| {decibels(prior)} |" in CARD


def test_the_table_of_drawn_images():
    for row in rows("generation.csv"):
        assert f"| {row['images']} | {row['size']} | {row['texture']} | {row['patches']} |" in CARD


def test_the_table_of_speed():
    for row in rows("precision.csv"):
        if row["ratio"]:
            assert f"{row['what']} | {row['pass']} | {row['mode']} | {float(row['value']) * 1000:.0f} |" in CARD


def test_the_time_is_at_most_a_quarter_of_drunets():
    seconds = {name: milliseconds for name, milliseconds, _ in curve.points(25)}
    assert seconds["natural"] <= seconds["drunet"] / 4


def test_the_card_in_the_file_is_the_one_of_the_recipe():
    card = load("natural").card
    assert card is not None
    assert card["sha256"] == load("natural").sha256
    assert set(card["licences"]) == set(card["sources"])
    assert card["config"]["optimizer"] == "muon"
    assert {f"psnr {level}" for level in (5, 10, 15, 25, 50, 75)} <= set(card["validation"])
    assert card["sha256"][:16] in CARD
