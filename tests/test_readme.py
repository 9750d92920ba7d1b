"""README.md: its verdicts follow from the tracked results, and what it names and links to is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from invdiff.cite import bibtex

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
HEAD = "| solver (NFE) | inpaint 50 %: mean / std / SW2 / cover | blur | 4x | denoise | its spread is | also in |\n"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.split(HEAD)[1].split("\n\n")[0].splitlines()[1:]
]
PEERS = {
    "DDRM": ["deepinv.sampling.DDRM"],
    "DPS": ["deepinv.sampling.DPS", "azula.guidance.dps.DPSSampler"],
    "DiffPIR": ["deepinv.sampling.DiffPIR", "azula.guidance.diffpir.DiffPIRDenoiser"],
    "PiGDM": ["deepinv.sampling.PiGDMDataFidelity", "azula.guidance.pgdm.PGDMSampler"],
    "MMPS": ["deepinv.sampling.MomentMatchingDataFidelity", "azula.guidance.mmps.MMPSDenoiser"],
}


def verdict(coverages: list[float]) -> str:
    """In words, of true coverages of nominal 90 % intervals: the one furthest off counts."""
    worst = max(coverages, key=lambda coverage: abs(coverage - 0.9))
    if abs(worst - 0.9) <= 0.02:
        return "honest"
    assert worst < 0.9
    return "a little too sure" if worst >= 0.8 else "too sure"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_verdicts_follow_from_the_figures(row: list[str]) -> None:
    assert row[5] == verdict([float(cell.split("/")[-1]) for cell in row[1:5]])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_the_peers_offer_is_there(row: list[str]) -> None:
    places = PEERS.get(re.match(r"\W*(\w+)", row[0])[1], [])  # type: ignore[index]
    assert row[6] == (", ".join(place.partition(".")[0] for place in places) or "-")
    for place in places:
        module, _, name = place.rpartition(".")
        pytest.importorskip(place.partition(".")[0])
        assert hasattr(importlib.import_module(module), name)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(links) > 15
    headings = {"#" + re.sub(r"\W+", "-", line.lower()).strip("-") for line in re.findall(r"^## (.*)$", TEXT, re.M)}
    missing = [link for link in links if not (link in headings if link.startswith("#") else (ROOT / link).is_file())]
    assert not missing


def test_the_parts_that_a_reader_looks_for() -> None:
    for part in ("make demo", "make test", "Likelihood(", "invdiff restore", "## Limits", "## Citing", "## Licence"):
        assert part in TEXT
    assert len(TEXT.splitlines()) <= 300, "short enough to be read"
    cited = re.findall(r"`invdiff cite ([a-z_ ]+)`", TEXT)
    assert cited
    assert all(bibtex(words.split()).startswith("@") for words in cited)
