"""The spectrum of priors: its figure, its figures an image, and its table in docs/compare.md.

Run as `python -m benchmarks.spectrum runs/spectrum`, after the lines of experiments/conf/experiment/spectrum.yaml.
Writes docs/spectrum.png (tasks below each other, priors from weak to strong between measurement and truth),
results/spectrum.csv (a row an image and job) and the table. Without a folder it writes the table from the CSV alone.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from invdiff.compare import difference, leaders, mean
from invdiff.compare_grid import bold_best, paper_style, picture, picture_table
from invdiff.compare_tables import signed
from invdiff.sweep import FIGURES, METHOD, TASK, Image, Job, Sweep, read_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "spectrum.csv"
FIGURE = ROOT / "docs" / "spectrum.png"
PAGE = ROOT / "docs" / "compare.md"
BEGIN, END = "<!-- table: python -m benchmarks.spectrum -->", "<!-- end of table -->"
REFERENCE = ("natural", "pnp_admm")
DRAWS = "kps"
# Task, what the README calls it, and the photograph shown: those of scikit-image alone may be.
ROWS = (
    ("blur", "deblurring", "rocket"),
    ("downsample", "4x super-resolution", "chelsea"),
    ("mask", "70 % missing", "astronaut"),
    ("grayscale", "colourisation", "coffee"),
)
# Median and bilateral stand in the table alone: ten columns are as many as can be seen.
HIDDEN = ("median", "bilateral")
COLUMNS = (*TASK, *METHOD, "image", "sha256", *FIGURES, "draws", "label")


def figure(sweep: Sweep) -> Figure:
    """Tasks below each other, a column a job; PSNR and CRPS of each picture below it.

    Raises:
        ValueError: a task or its photograph is missing.
    """
    tasks = {jobs[0].names["operator"]: jobs for jobs in sweep.tasks().values()}
    methods = list(
        dict.fromkeys(_method(job) for job in sorted(sweep.jobs, key=_last) if job.names["prior"] not in HIDDEN)
    )
    rows, captions = [], []
    for operator, title, name in ROWS:
        shown = {
            _method(job): image
            for job in tasks.get(operator, [])
            for image in job.images.values()
            if image.name == name and job.names["prior"] not in HIDDEN
        }
        if not shown:
            raise ValueError(f"The sweep has no {name} of {operator} ({title}): run the lines of spectrum.yaml first.")
        images = [shown.get(method) for method in methods]
        first = next(image for image in images if image is not None)
        rows.append([picture(first, "measurement"), *(picture(i, "mean") for i in images), picture(first, "truth")])
        pairs = zip(
            *(_best(images, key, form) for key, form in (("psnr_mean", "{:.2f}"), ("crps", "{:.4f}"))), strict=True
        )
        captions.append([[("PSNR, dB", "normal"), ("CRPS", "normal")], *map(list, pairs), []])
    heads = [prior if solver != DRAWS else f"{prior}, mean of its draws" for prior, solver in methods]
    sides = [title for _, title, _ in ROWS]
    return picture_table(rows, captions, ["measurement", *heads, "truth"], sides=sides, width=9.5, zoom=2 / 3)


def _best(images: Sequence[Image | None], key: str, form: str) -> list[tuple[str, str]]:
    values = [None if image is None else image.figures.get(key) for image in images]
    return bold_best(values, form, lowest=key == "crps")


def _method(job: Job) -> tuple[str, str]:
    return job.names["prior"], job.names["solver"]


def _last(job: Job) -> bool:
    """What has draws stands behind the point estimates."""
    return job.names["solver"] == DRAWS


def write_rows(sweep: Sweep, path: Path) -> None:
    """Write a row an image and job."""
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for job in sweep.jobs:
            names = [job.names[part] for part in (*TASK, *METHOD)]
            for image in job.images.values():
                figures = [f"{image.figures[key]:.6g}" if key in image.figures else "" for key in FIGURES]
                writer.writerow([*names, image.name, image.sha256, *figures, image.draws, image.label])


def read_rows(path: Path = RESULTS) -> list[Job]:
    """The jobs that `write_rows` wrote."""
    found: dict[tuple[str, ...], dict[str, Image]] = {}
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            figures = {key: float(row[key]) for key in FIGURES if row[key]}
            image = Image(row["image"], row["sha256"], figures, int(row["draws"]), row["label"])
            found.setdefault(tuple(row[part] for part in (*TASK, *METHOD)), {})[image.sha256] = image
    return [Job("", dict(zip((*TASK, *METHOD), key, strict=True)), {}, {}, images) for key, images in found.items()]


def table(jobs: Sequence[Job]) -> str:
    """PSNR of each prior and task, with the paired difference from the reference; bold as in `compare.leaders`."""
    methods = list(dict.fromkeys(_method(job) for job in sorted(jobs, key=_last)))
    by_name = {(job.names["operator"], *_method(job)): job for job in jobs}
    best = [
        job for name, _, _ in ROWS for job in leaders([j for j in jobs if j.names["operator"] == name], "psnr_mean")
    ]
    lines = ["| prior | " + " | ".join(title for _, title, _ in ROWS) + " |", "|" + " --- |" * (len(ROWS) + 1)]
    for prior, solver in methods:
        cells = []
        for operator, _, _ in ROWS:
            job, other = by_name.get((operator, prior, solver)), by_name.get((operator, *REFERENCE))
            cells.append("-" if job is None else _cell(job, other, any(job is one for one in best)))
        name = f"{prior}, draws (`{solver}`)" if solver == DRAWS else prior
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(job: Job, other: Job | None, bold: bool) -> str:
    level = f"{mean(job, 'psnr_mean'):.2f}"
    level = f"**{level}**" if bold else level
    if other is None or other is job:
        return level
    gap = difference(job, other, "psnr_mean")
    return level if math.isnan(gap.low) else f"{level} ({signed(gap.low, 2)} to {signed(gap.high, 2)})"


def written(page: str, content: str) -> str:
    """The page with the table between its marks replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", type=Path, help="the folder of the sweep")
    arguments = parser.parse_args(argv)
    if arguments.sweep is not None:
        sweep = read_sweep(arguments.sweep)
        for remark in sweep.remarks:
            print(remark)
        write_rows(sweep, RESULTS)
        with paper_style():
            figure(sweep).savefig(FIGURE, metadata={"Software": None})
    PAGE.write_text(written(PAGE.read_text(), table(read_rows())))
    print(table(read_rows()))


if __name__ == "__main__":
    main()
