"""The tables of `benchmarks.quality`: the place of KPS on every task, and means of all methods, whole and by task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from invdiff.compare import interval

from .quality_methods import METHODS, REFERENCE
from .rows import Row

TASKS = ("blur", "motion", "down4", "inpaint70", "inpaint92", "box", "gray")
SHOWN = {
    "psnr_mean": "PSNR of the mean",
    "psnr_limit": "of endless draws' mean",
    "psnr_draw": "of a draw",
    "ssim_mean": "SSIM of the mean",
    "crps": "CRPS",
    "coverage": "coverage",
}
RANKED = {"psnr_mean": "PSNR of the mean, dB", "crps": "CRPS", "coverage": "coverage error"}
# By how much KPS is better, by crop.
Gains = dict[str, float]


# In gray a few colours decide what endless draws would be off by: the estimate may be below 0, and is averaged nowhere.
UNSURE = "gray"


def nominal(draws: int) -> float:
    """The level of the intervals that so many draws can give, 90 % at most."""
    return min(0.9, (draws - 1) / (draws + 1))


def ranks(found: Sequence[Row]) -> list[str]:
    """Markdown: the place of KPS among all methods, on the crops that all have, and its distance to the best other.

    A method's distance to KPS is the mean over these crops, in brackets its 95 % interval; that of coverage is how much
    further the coverage of all these crops is from nominal. A figure that is not a number is the worst. The last row is
    of the means of these distances over all tasks and noises, of the methods that take all of them.
    """
    heads = ("task", "noise", "crops", *(f"KPS in {words}" for words in RANKED.values()))
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    every: list[dict[str, dict[str, Gains]]] = []
    for (sigma_y, task), here in _by_case(found):
        # A run that was interrupted has methods that lack the last crop.
        common = set.intersection(*(set(rows) for rows in here.values())) if REFERENCE in here else set()
        shared = {method: {name: rows[name] for name in sorted(common)} for method, rows in here.items()}
        every.append({figure: _gains(shared, figure) for figure in RANKED})
        cells = [_place(gains, figure) for figure, gains in every[-1].items()]
        lines.append(f"| {' | '.join((task, sigma_y, str(len(common)), *cells))} |")
    if len(every) > 1:
        whole = {figure: _mean([gains[figure] for gains in every]) for figure in RANKED}
        crops = max((len(gain) for gains in whole.values() for gain in gains.values()), default=0)
        cells = [_place(gains, figure) for figure, gains in whole.items()]
        lines.append(f"| all | all | {' | '.join((str(crops), *cells))} |")
    return lines


def _by_case(found: Sequence[Row]) -> list[tuple[tuple[str, str], dict[str, dict[str, Row]]]]:
    """Rows by noise and task, in order, in them by method, in them by image.

    Raises:
        ValueError: they are of several sizes or numbers of draws, which are no one table.
    """
    kinds = sorted({(row.get("size", ""), row.get("draws", "")) for row in found})
    if len(kinds) > 1:
        said = " and ".join(f"{draws} draws of {size}x{size}" for size, draws in kinds)
        raise ValueError(f"The rows are of {said}: expected one kind; give each an --out of its own.")
    cases: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in found:
        cases.setdefault((row["sigma_y"], row["task"]), {}).setdefault(row["method"], {})[row["image"]] = row
    return sorted(cases.items(), key=lambda case: (case[0][0], TASKS.index(case[0][1])))


def _gains(here: dict[str, dict[str, Row]], figure: str) -> dict[str, Gains]:
    """By how much KPS is better than each of the others on each crop."""
    kps, sign = here.get(REFERENCE, {}), {"psnr_mean": 1, "crps": -1}.get(figure)
    gains: dict[str, Gains] = {}
    for method, others in here.items():
        names = [name for name in kps if others[name].get(figure)]
        if method == REFERENCE or not names:
            continue
        pairs = [(float(kps[name][figure]), float(others[name][figure])) for name in names]
        if sign:
            found = [sign * (ours - theirs) for ours, theirs in pairs]
        else:
            # The distance of the mean coverage from nominal, where too much and too little of single crops cancel.
            level = nominal(int(kps[names[0]]["draws"]))
            sides = [math.copysign(1, sum(values) / len(values) - level) for values in zip(*pairs, strict=True)]
            found = [sides[1] * (theirs - level) - sides[0] * (ours - level) for ours, theirs in pairs]
        gains[method] = dict(zip(names, found, strict=True))
    return gains


def _mean(every: Sequence[dict[str, Gains]]) -> dict[str, Gains]:
    """Means over tasks, of the methods that have all and the crops that they have in all."""
    methods = set.intersection(*(set(gains) for gains in every))
    names = set.intersection(*(set(gains[method]) for gains in every for method in methods)) if methods else set()
    return {
        method: {name: sum(gains[method][name] for gains in every) / len(every) for name in sorted(names)}
        for method in sorted(methods)
        if names
    }


def _place(gains: dict[str, Gains], figure: str) -> str:
    """The place of KPS, and by how much it is better than the best of the others, or worse."""
    if not gains:
        return "-"
    means = {method: sum(values.values()) / len(values) for method, values in gains.items()}
    if all(map(math.isnan, means.values())):
        return "**failed**"
    # Not a number is no place: a method that diverged is behind everybody.
    means = {method: math.inf if math.isnan(mean) else mean for method, mean in means.items()}
    best = min(means, key=lambda method: means[method])
    rank = 1 + sum(mean < 0 for mean in means.values())
    digits = 2 if figure == "psnr_mean" else 4 if figure == "crps" else 3
    ahead = [value if rank == 1 else -value for value in gains[best].values()]
    said = f"{abs(means[best]):.{digits}f}"
    if len(ahead) > 1:
        low, high = interval(ahead)
        said += f" [{low:.{digits}f}, {high:.{digits}f}]"
    of = f"{rank} of {len(gains) + 1}"
    return f"{of}, {said} ahead of {best}" if rank == 1 else f"**not first: {of}**, {said} behind {best}"


def overall(found: Sequence[Row]) -> list[str]:
    """Markdown: means over crops, tasks and noises of the methods that take all of them, the lowest CRPS first.

    In brackets the 95 % interval of the difference to KPS, over crops. The mean of endless draws leaves out `UNSURE`.
    """
    cases = [here for _, here in _by_case(found)]
    methods = set.intersection(*map(set, cases)) if cases else set()
    images = set.intersection(*(set(here[method]) for here in cases for method in methods)) if methods else set()
    if REFERENCE not in methods or not images:
        return []
    whole = {
        method: {image: _averaged([here[method][image] for here in cases]) for image in sorted(images)}
        for method in sorted(methods)
    }

    def crps(method: str) -> float:
        mean = sum(float(row["crps"]) for row in whole[method].values()) / len(images)
        return math.inf if math.isnan(mean) else mean

    shown = SHOWN | {"psnr_limit": f"{SHOWN['psnr_limit']}, without {UNSURE}"}
    return [
        *_heads(shown.values()),
        *(_line(method, whole[method], whole[REFERENCE]) for method in sorted(whole, key=crps)),
    ]


def _averaged(rows: Sequence[Row]) -> Row:
    """Means over tasks and noises of one method on one crop, of the figures that it has in all."""
    made = {}
    for figure in (*SHOWN, "nfe", "nfe_backward"):
        wanted = [row for row in rows if figure != "psnr_limit" or row["task"] != UNSURE]
        values = [row[figure] for row in wanted if row.get(figure)]
        if values and len(values) == len(wanted):
            made[figure] = str(sum(map(float, values)) / len(values))
    return made


def table(found: Sequence[Row]) -> list[str]:
    """Markdown: means over crops, task by task; in brackets the 95 % interval of the difference to KPS, over crops."""
    lines: list[str] = []
    order = {name: place for place, name in enumerate(METHODS)}
    for (sigma_y, task), here in _by_case(found):
        reference = here.get(REFERENCE, {})
        made = []
        for method in sorted(here, key=order.__getitem__):
            shared = {name: row for name, row in here[method].items() if name in reference}
            made += [_line(method, shared, reference)] if shared else []
        if made:
            lines += [*([""] if lines else []), f"## {task}, sigma {sigma_y}", "", *_heads(SHOWN.values()), *made]
    return lines


def _heads(shown: Iterable[str]) -> list[str]:
    heads = ("method", "crops", "NFE + passes back", *shown)
    return [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]


def _line(method: str, here: dict[str, Row], reference: dict[str, Row]) -> str:
    """The row of a method, over the crops that it and KPS have."""
    names = list(here)
    nfe, back = (sum(float(here[name][key]) for name in names) / len(names) for key in ("nfe", "nfe_backward"))
    cost = f"{nfe:.0f} + {back:.0f}" if back else f"{nfe:.0f}"
    texts = [_text(here, reference, names, figure, method == REFERENCE) for figure in SHOWN]
    clouds = sorted({int(here[name]["particles"]) for name in names if here[name].get("particles")})
    said = f"{method}, clouds of {' or '.join(map(str, clouds))}" if clouds else method
    return f"| {' | '.join((said, str(len(names)), cost, *texts))} |"


def _text(here: dict[str, Row], reference: dict[str, Row], names: Sequence[str], figure: str, alone: bool) -> str:
    if not all(here[name].get(figure) for name in names):
        return "-"
    values = [float(here[name][figure]) for name in names]
    if any(math.isnan(float(here[name]["psnr_mean"])) for name in names):
        return "failed"
    if any(map(math.isnan, values)):
        # Of endless draws, whose estimated error is below 0 by chance.
        return "-"
    digits = 4 if figure == "crps" else 2
    text = f"{sum(values) / len(values):.{digits}f}"
    if alone or len(names) < 2 or any(math.isnan(float(reference[name][figure])) for name in names):
        return text
    low, high = interval(value - float(reference[name][figure]) for value, name in zip(values, names, strict=True))
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"
