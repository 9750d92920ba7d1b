"""The tables of benchmarks/README.md from the tracked results: `python -m benchmarks.tables` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from . import calibration, quality, restoration, rows
from .rows import Row

ROOT = Path(__file__).parent
PAGE = ROOT / "README.md"
RESULTS = ROOT / "results"


def read(name: str) -> list[Row]:
    """The rows of a tracked CSV, none where it was never measured."""
    return rows.read(RESULTS / name)


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def posterior() -> list[str]:
    """Samplers against an exact posterior, ours and the peers', a column an operator."""
    own = [row | {"solver": f"invdiff {row['solver']}"} for row in read("posterior.csv") if row["coverage"] != "nan"]
    peers = read("posterior_peers.csv")
    wanted = ("invdiff exact", "invdiff kps", "invdiff ddrm", "invdiff dps", "invdiff diffpir", "invdiff pigdm")
    names = [*wanted, "invdiff mmps", "invdiff tmpd", *dict.fromkeys(row["solver"] for row in peers)]
    found = []
    for name in names:
        here = {row["operator"]: row for row in [*own, *peers] if row["solver"] == name}
        cells = []
        for operator in ("inpaint", "blur", "down4", "denoise"):
            row = here.get(operator)
            shown = [float(row[key]) for key in ("mean_error", "std_ratio", "coverage")] if row else []
            cells.append(" / ".join(f"{value:.2f}" for value in shown) or "-")
        nfe = ", ".join(dict.fromkeys(row["nfe"] for row in here.values()))
        found.append([name.replace("invdiff exact", "exact draws"), nfe, *cells])
    return lines(("sampler", "NFE", "inpainting 50 %", "blur", "4x reduction", "denoising"), found)


def speed() -> list[str]:
    """Seconds against the peers."""
    words = {"draw": "one draw, s", "ensemble": "{} draws, s", "outside": "outside, ms a step"}
    found = []
    for part, what in words.items():
        kinds = ("none", "") if part == "outside" else ("bfloat16", "float32")
        cells: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
        for row in read("speed.csv"):
            if row["part"] == part:
                cells.setdefault((row["solver"], row["task"]), {})[row["library"], row["network"]] = row
        for (solver, task), here in cells.items():
            own = here["invdiff", kinds[0]]
            shown = [
                here[library, kind]["value"] if (library, kind) in here else "-"
                for library in ("invdiff", "deepinv", "azula")
                for kind in kinds
            ]
            found.append([what.format(own["draws"]), solver, task, own["nfe"], *shown, own["ratio"] or "-"])
    heads = ("what", "solver", "task", "NFE", "ours", "ours, float32", "deepinv, our prior", "deepinv")
    return lines((*heads, "azula, our prior", "azula", "deepinv / ours"), found) if found else []


def rest(name: str, table: Callable[[list[Row]], list[str]]) -> Callable[[], list[str]]:
    """A table that the benchmark itself makes of its rows."""

    def made() -> list[str]:
        found = read(name)
        return table(found) if found else []

    return made


TABLES: dict[str, Callable[[], list[str]]] = {
    "posterior": posterior,
    "speed": speed,
    "photographs": rest("restoration.csv", lambda found: restoration.short(found, 48)),
    "quality": rest("quality.csv", quality.table),
    "calibration": rest("calibration.csv", calibration.table),
}


def page(text: str) -> str:
    """The page with every table between `<!-- NAME -->` and `<!-- end -->` made anew.

    Raises:
        KeyError: for a name that is no table.
    """

    def renewed(match: re.Match[str]) -> str:
        made = TABLES[match.group(1)]() or ["Not measured yet."]
        return "\n".join([f"<!-- {match.group(1)} -->", "", *made, "", "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", renewed, text, flags=re.DOTALL)


def main() -> None:
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
