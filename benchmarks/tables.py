"""The tables of README.md and quality.md here from the tracked results: `python -m benchmarks.tables` renews them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from . import calibration, quality_tables, restoration, rows
from .rows import Row

ROOT = Path(__file__).parent
PAGES = (ROOT / "README.md", ROOT / "quality.md")
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
    """Seconds against the peers, milliseconds outside the network and their share of a step, memory."""
    words = {
        "draw": "one draw, s",
        "ensemble": "{} draws, s",
        "outside": "outside, ms a step",
        "memory": "memory of {} draws, MiB",
    }
    measured = read("speed.csv")
    steps = {
        (row["solver"], row["task"]): 1000 * float(row["value"]) / float(row["nfe"])
        for row in measured
        if (row["part"], row["library"], row["network"]) == ("draw", "invdiff", "bfloat16")
    }
    found = []
    for part, what in words.items():
        kinds = ("none", "") if part == "outside" else ("bfloat16", "float32")
        for (solver, task), here in _cells(measured, part).items():
            own = here["invdiff", kinds[0]]
            shown = [
                here[library, kind]["value"] if (library, kind) in here else "-"
                for library in ("invdiff", "deepinv", "azula")
                for kind in kinds
            ]
            peer = here.get(("deepinv", "float32")) if part == "memory" else None
            ratio = f"{float(peer['value']) / float(own['value']):.2f}" if peer else own["ratio"] or "-"
            known = part == "outside" and (solver, task) in steps
            share = f"{100 * float(own['value']) / steps[solver, task]:.1f} %" if known else "-"
            found.append([what.format(own["draws"]), solver, task, own["nfe"], *shown, ratio, share])
    heads = ("what", "solver", "task", "NFE", "ours", "ours, float32", "deepinv, our prior", "deepinv")
    more = ("azula, our prior", "azula", "deepinv / ours", "ours outside / a step")
    return lines((*heads, *more), found) if found else []


def _cells(measured: Sequence[Row], part: str) -> dict[tuple[str, str], dict[tuple[str, str], Row]]:
    """The rows of a part by solver and task, and in them by library and network."""
    cells: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in measured:
        if row["part"] == part:
            cells.setdefault((row["solver"], row["task"]), {})[row["library"], row["network"]] = row
    return cells


def limit() -> list[str]:
    """How far draws are from as many passes through the bare network as they ask for."""
    measured = read("speed.csv")
    bare = {
        (row["network"], row["task"], row["size"]): float(row["value"]) for row in measured if row["part"] == "forward"
    }
    found = []
    for row in measured:
        # DPS goes back through the network once a step.
        passes = "forward+back" if row["solver"] == "dps" else "forward"
        least = bare.get((row["network"], passes, row["size"]))
        if row["part"] in ("draw", "ensemble") and row["library"] == "invdiff" and least:
            floor = least * int(row["nfe"]) * int(row["draws"])
            seconds = float(row["value"])
            counted = f"{row['draws']} x {row['nfe']} {passes}"
            cells = [counted, f"{floor:.4g}", f"{seconds:.4g}", f"{seconds / floor:.2f}"]
            found.append([row["solver"], row["task"], row["network"], *cells])
    heads = ("solver", "task", "network", "draws x passes", "bare network, s", "all, s", "all / bare")
    return lines(heads, found) if found else []


def curve() -> list[str]:
    """How the seconds of DDRM grow, with the exponent of a line through the logarithms."""
    ladders: dict[str, list[Row]] = {}
    for row in read("speed.csv"):
        if row["part"] == "curve":
            ladders.setdefault(row["network"].split()[-1], []).append(row)
    found = []
    for ladder, rungs in ladders.items():
        places = [float(row["size" if ladder == "side" else "draws"]) for row in rungs]
        seconds = [float(row["value"]) for row in rungs]
        logs = [[math.log(value) for value in values] for values in (places, seconds)]
        exponent = statistics.linear_regression(*logs).slope
        shown = ", ".join(f"{place:.0f}: {value:.3g}" for place, value in zip(places, seconds, strict=True))
        found.append([ladder, rungs[0]["nfe"], shown, f"{exponent:.2f}"])
    return lines(("what grows", "NFE", "seconds", "exponent"), found) if found else []


def denoising() -> list[str]:
    """PSNR of priors as denoisers, a column a noise level."""
    measured = read("denoising.csv")
    levels = list(dict.fromkeys(row["sigma_255"] for row in measured))
    found = []
    for prior in dict.fromkeys(row["prior"] for row in measured):
        here = {row["sigma_255"]: row for row in measured if row["prior"] == prior}
        shown = [f"{float(here[level]['psnr']):.2f}" if level in here else "-" for level in levels]
        seconds = statistics.mean(float(row["seconds_per_image"]) for row in here.values())
        images = " or ".join(dict.fromkeys(row["images"] for row in here.values()))
        found.append([prior, images, *shown, f"{seconds:.2f}"])
    heads = ("prior", "images", *(f"PSNR at {level} / 255" for level in levels), "seconds an image")
    return lines(heads, found) if found else []


def rest(name: str, table: Callable[[list[Row]], list[str]]) -> Callable[[], list[str]]:
    """A table that the benchmark itself makes of its rows."""

    def made() -> list[str]:
        found = read(name)
        return table(found) if found else []

    return made


def tuned() -> list[list[str]]:
    """Settings of deepinv's DPIR on the crop that chose them, the best first."""
    found = sorted(read("tuning.csv"), key=lambda row: -float(row["psnr"]))
    return [[row["settings"].strip("{}"), row["psnr"], *(row[task] for task in quality_tables.TASKS)] for row in found]


TABLES: dict[str, Callable[[], list[str]]] = {
    "posterior": posterior,
    "speed": speed,
    "limit": limit,
    "curve": curve,
    "photographs": rest("restoration.csv", lambda found: restoration.short(found, 48)),
    "ranks": rest("quality.csv", quality_tables.ranks),
    "methods": rest("quality.csv", quality_tables.overall),
    "quality": rest("quality.csv", quality_tables.table),
    "denoising": denoising,
    "tuning": lambda: lines(("settings", "mean PSNR", *quality_tables.TASKS), tuned()),
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
    for path in PAGES:
        path.write_text(page(path.read_text()))


if __name__ == "__main__":
    main()
