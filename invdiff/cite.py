"""What to cite: BibTeX of the papers behind every solver and prior, from `citations.bib` beside this file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["bibtex", "entries", "listing"]

# What an entry alone would not say; printed as a comment before it.
NOTES = {
    "gaussian": "a Gaussian filter has no paper of its own; its strength was fitted to the noise here",
    "median": "a median filter has no paper of its own; its window was fitted to the noise here",
    "diffusers": "the library asks for no paper: cite the one of the model that you load",
    "deepinv": "cite the paper of the denoiser that you choose as well",
}


def entries() -> dict[str, str]:
    """Every entry of `citations.bib` by its key, as it stands there.

    >>> entries()["kawar2022denoising"].splitlines()[1]
    '  title = {Denoising Diffusion Restoration Models},'
    """
    text = (Path(__file__).parent / "citations.bib").read_text(encoding="utf-8")
    found = re.finditer(r"^@\w+\{(\S+),\n.*?^\}$", text, re.MULTILINE | re.DOTALL)
    return {entry[1]: entry[0] for entry in found}


def field(entry: str, name: str) -> str:
    """The value of a field of an entry, on one line; "" where it has none."""
    value = re.search(rf"^  {name} = \{{(.*?)\}},$", entry, re.MULTILINE | re.DOTALL)
    return " ".join(value[1].split()) if value else ""


def methods() -> dict[str, list[str]]:
    """The keys of the entries of every solver and prior, in the order of the file."""
    found: dict[str, list[str]] = {name: [] for name in NOTES}
    for key, entry in entries().items():
        for name in field(entry, "keywords").split(", "):
            found.setdefault(name, []).append(key)
    return dict(sorted(found.items())) | {"invdiff": ["invdiff"]}


def bibtex(names: Sequence[str]) -> str:
    """The BibTeX of methods, each paper once.

    Args:
        names: of solvers, priors (what follows a colon is left out), or "invdiff" for this software.

    Raises:
        ValueError: for an unknown name; the sentence suggests the nearest.

    >>> print(bibtex(["fps_smc"]).splitlines()[0])
    @inproceedings{dou2024diffusion,
    """
    known, texts = methods(), entries()
    chosen: dict[str, str] = {}
    for name in names:
        word = name.partition(":")[0].lower()
        if word not in known:
            close = difflib.get_close_matches(word, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}."
            raise ValueError(f"There is no method {name!r} to cite: {hint}")
        if word in NOTES:
            chosen[f"note of {word}"] = f"% {word}: {NOTES[word]}"
        for key in known[word]:
            chosen[key] = re.sub(r"^  keywords = .*\n", "", texts[key], flags=re.MULTILINE)
    return "\n\n".join(chosen.values())


def listing() -> str:
    """Every name that `bibtex` takes, with authors, years and titles of what it cites."""
    texts, lines = entries(), []
    for name, keys in methods().items():
        works = [f"{_who(texts[key])} {field(texts[key], 'year')}, {field(texts[key], 'title')}" for key in keys]
        lines += [f"{name if number == 0 else '':<11}{work}" for number, work in enumerate(works or [NOTES[name]])]
    return "\n".join(line.replace("{", "").replace("}", "") for line in lines)


def _who(entry: str) -> str:
    surnames = [author.partition(",")[0].strip("{}") for author in field(entry, "author").split(" and ")]
    if len(surnames) > 2:
        return f"{surnames[0]} et al."
    return " and ".join(surnames)
