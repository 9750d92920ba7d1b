"""What `invdiff cite` prints: every method, valid BibTeX, and what the docstrings say."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
import yaml

import invdiff
from invdiff import priors, solvers
from invdiff.cite import NOTES, bibtex, entries, field, listing, methods
from invdiff.cli import main

ROOT = Path(__file__).resolve().parent.parent
SOLVERS = list(solvers.names())
PRIORS = list(dict.fromkeys(name.partition(":")[0] for name in priors.names()))
REQUIRED = {
    "article": {"title", "author", "journal", "year"},
    "inproceedings": {"title", "author", "booktitle", "year"},
    "incollection": {"title", "author", "booktitle", "publisher", "year"},
    "misc": {"title", "author", "year", "eprint"},
    "software": {"title", "author", "year", "version"},
}


def _plain(text: str) -> str:
    """Without accents, TeX, case and line breaks."""
    text = re.sub(r"\\.|[{}]", "", text)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(text.lower().split())


def _surnames(entry: str) -> list[str]:
    return [_plain(author.partition(",")[0]) for author in field(entry, "author").split(" and ")]


@pytest.mark.parametrize("name", [*SOLVERS, *PRIORS])
def test_every_solver_and_prior_has_an_entry_or_a_reason(name: str) -> None:
    assert methods()[name] or NOTES[name]
    printed = bibtex([name])
    assert "keywords" not in printed
    assert all(line.startswith(("@", "%", " ", "}")) for line in printed.splitlines() if line)


def test_nothing_else_is_cited() -> None:
    assert set(methods()) == {*SOLVERS, *PRIORS, "invdiff"}
    named = {key for keys in methods().values() for key in keys}
    assert named == set(entries())


def test_the_file_is_valid_bibtex() -> None:
    text = (ROOT / "invdiff" / "citations.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(.*),$", text, re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(entries())
    for key, entry in entries().items():
        kind = entry[1 : entry.index("{")]
        depth = 0
        for sign in re.findall(r"[{}]", entry)[:-1]:
            depth += 1 if sign == "{" else -1
            assert depth >= 1, key
        assert depth == 1, key
        fields = re.findall(r"^  (\w+) = \{", entry, re.MULTILINE)
        assert len(fields) == len(set(fields)), key
        assert REQUIRED[kind] <= set(fields), key
        assert len(re.findall(r"^  \S", entry, re.MULTILINE)) == len(fields), key
        assert re.fullmatch(r"\d{4}", field(entry, "year")), key
        assert not field(entry, "eprint") or re.fullmatch(r"\d{4}\.\d{5}", field(entry, "eprint")), key
        assert not field(entry, "pages") or re.fullmatch(r"\d+--\d+", field(entry, "pages")), key
        assert all("," in author or author.startswith("{") for author in field(entry, "author").split(" and ")[:3]), key


@pytest.mark.parametrize("name", SOLVERS)
def test_authors_year_and_title_are_those_of_the_solver_s_docstring(name: str) -> None:
    doc = _plain(type(solvers.load(name)).__doc__ or "")
    papers = [entries()[key] for key in methods()[name] if key != "invdiff"]
    for entry in papers:
        first, *others = _surnames(entry)
        assert f"{first} et al. {field(entry, 'year')}" in doc or all(other in doc for other in [first, *others])
        assert field(entry, "year") in doc
    if '"' in doc:
        assert any(_plain(field(entry, "title")) in doc for entry in papers)


@pytest.mark.parametrize("name", PRIORS)
def test_authors_and_year_are_those_of_the_prior_s_line(name: str) -> None:
    lines = [line for full, line in priors.names().items() if full.partition(":")[0] == name]
    for authors, year in re.findall(r"\(([A-Z][^()]*?) (\d{4})\)", " ".join(lines)):
        entry = entries()[methods()[name][0]]
        assert field(entry, "year") == year
        found = [part for part in re.split(r", | and ", _plain(authors).replace(" et al.", "")) if part]
        assert found == _surnames(entry)[: len(found)]


def test_a_paper_of_two_methods_is_printed_once() -> None:
    printed = bibtex(["red_gd", "red_fp", "mmps", "kps"])
    assert re.findall(r"^@\w+\{(.*),$", printed, re.MULTILINE) == [
        "romano2017little",
        "rozet2024learning",
        "invdiff",
    ]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "ddrm"]) == 0
    assert capsys.readouterr().out.startswith("@inproceedings{kawar2022denoising,\n  title = {Denoising Diffusion")
    assert main(["cite", "KPS", "natural:mine.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("@") == 3
    assert main(["cite"]) == 0
    listed = capsys.readouterr().out
    assert listed.strip() == listing()
    assert all(re.search(rf"^{name} ", listed, re.MULTILINE) for name in [*SOLVERS, *PRIORS])


@pytest.mark.parametrize(
    ("name", "sentence"), [("ddmr", "did you mean 'ddrm'?"), ("?", "expected one of adm, bilateral")]
)
def test_an_unknown_name_is_one_sentence(name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", name]) == 2
    said = capsys.readouterr().err
    assert f"There is no method {name!r} to cite: {sentence}" in said
    assert said.count("\n") == 1


def test_the_citation_file_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "type", "license", "version"} <= set(cited)
    own = entries()["invdiff"]
    assert cited["version"] == field(own, "version") == invdiff.__version__
    assert cited["title"] == field(own, "title")
    assert cited["authors"] == [{"name": field(own, "author").strip("{}")}]
