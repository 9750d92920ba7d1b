"""`write_report`: what one ensemble shows and is worth, as a page that is complete in one file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from torch import Tensor

from .. import __version__
from ..contents import Contents
from ..operators import Operator
from ..posterior import Posterior
from ..provenance import describe, write_whole
from .charts import LEVELS, coverage_chart, rank_chart
from .content import Report, assemble
from .look import Shown
from .pictures import colour_bar
from .words import Row, calibration_words, complete_record, figure_rows, setting_rows, subtitle

if TYPE_CHECKING:
    from ..conformal import Calibrator

__all__ = ["LIMIT", "write_report"]

# Bytes of a page, which mail and wikis still take.
LIMIT = 5_000_000


def write_report(
    path: str | os.PathLike[str],
    posterior: Posterior,
    *,
    measurement: Tensor | None = None,
    truth: Tensor | None = None,
    operator: Operator | None = None,
    sigma: float | None = None,
    calibrator: Calibrator | None = None,
    anyway: bool = False,
    title: str | None = None,
    number: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write one HTML file under 5 MB, without any request to a network, that shows what the draws say and are worth.

    What is left out is taken from the folder that the draws are kept in (`sample(..., store=...)`) where there is one.
    Large images are shown whole but reduced, and their draws in the window with the largest spread.

    Args:
        path: the file; written whole or not at all.
        posterior: draws of images, (draws, [m,] C, H, W) with C 1 or 3, or a point estimate.
        measurement: y, ([m,] *out_shape).
        truth: ([m,] C, H, W).
        operator: that measured y; with it and sigma the page says how well the draws agree with y, and what they
            invent.
        sigma: standard deviation of the noise, where the record does not say it.
        calibrator: scales the spread (`invdiff.conformal`).
        anyway: take a calibrator that was made with other settings too; the page says so, and promises nothing.
        title: of the page; the name of the folder if left out.
        number: which of m measurements, from 0 on.
        overwrite: replace a file that is there.

    Returns:
        The path.

    Raises:
        TypeError: posterior is something else.
        ValueError: the draws are no images, no draw is left, the operator is not that of the draws, shapes do not fit,
            or the calibrator refuses.
        FileExistsError: the file is there, without `overwrite`, or is a folder.
        FileNotFoundError: there is no such folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to write {target.name} in: make it first.")
    if target.is_dir():
        raise FileExistsError(f"{target} is a folder: expected the name of a file, such as {target / 'report.html'}.")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already: choose another name, or give overwrite=True (--overwrite).")
    given = Contents(measurement, truth, operator)
    report = assemble(posterior, given, sigma=sigma, calibrator=calibrator, anyway=anyway, number=number, limit=LIMIT)
    folder = posterior.record.get("store")
    page = _page(report, title or (Path(folder).stem if folder else "Restoration"))
    write_whole(target, page.encode())
    return target


def _page(report: Report, title: str) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_sha256(style)}'; "
        f"script-src 'sha256-{_sha256(script)}'; base-uri 'none'; form-action 'none'"
    )
    posterior, label = report.posterior, report.posterior.label
    state = "point" if posterior.point else "calibrated" if label.startswith("calibrated") else "unchecked"
    explore = "Draw by draw, pixel by pixel" if report.data["draws"] else "Pixel by pixel"
    words = {
        "title": title,
        "generator": f"invdiff {__version__}",
        "subtitle": subtitle(posterior),
        "state": state,
        "label": label,
        "worth": calibration_words(posterior),
        "explore": explore,
        "has_draws": "" if len(report.data["draws"]) > 1 else "hidden",
        "top": f"{report.top:.2g}",
        "keys": _keys(len(report.data["draws"])),
        "probe": report.probe,
        "origin": describe(posterior, "restored").sentence(),
        "record": complete_record(posterior),
    }
    markup = {
        "policy": policy,
        "style": style,
        "script": script,
        "bar": colour_bar(),
        "sheet": "\n".join(_figure(shown, report) for shown in report.sheet),
        "notes": _notes(report.notes),
        "evidence": _evidence(report),
        "figures": _table(figure_rows(report.figures, report.scores), "figures"),
        "settings": _table(setting_rows(posterior), "figures settings"),
        # No end of a script can stand in it, whatever a record holds.
        "data": json.dumps(report.data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return Template(_asset("report.html")).substitute({k: html.escape(v) for k, v in words.items()} | markup)


def _keys(draws: int) -> str:
    probe = (
        "The probe follows the mouse: a click holds it, another lets go. A finger puts it down, and with the picture "
        "focused the arrow keys move it (with Shift ten pixels at a time)."
    )
    return probe + (" The space bar plays the draws." if draws > 1 else "")


def _figure(shown: Shown, report: Report) -> str:
    height, width = shown.shape
    frame, bar = "", ""
    if report.window is not None and shown.frame:
        w = report.window
        frame = (
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect x="{w.left}" y="{w.top}" width="{w.width}" height="{w.height}"/></svg>'
        )
    if shown.key in ("std", "error"):
        bar = f'<div class="bar"><span>0</span><img src="{colour_bar()}" alt=""><span>{report.top:.2g}</span></div>'
    return (
        f'<figure><div class="picture"><img id="sheet-{shown.key}" src="{shown.uri}" width="{width}" height="{height}" '
        f'alt="{html.escape(shown.alt)}">{frame}</div><figcaption><b>{html.escape(shown.name)}</b>'
        f"{html.escape(shown.note)}</figcaption>{bar}</figure>"
    )


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes" aria-label="Notes">{items}</ul>' if items else ""


def _evidence(report: Report) -> str:
    """Coverage and ranks, where the truth is known."""
    scores = report.scores
    if scores is None:
        return ""
    pairs = zip(LEVELS, scores.coverage, strict=True)
    coverage = {level: found for level, found in pairs if found == found}
    charts = ""
    if coverage:
        charts = (
            f"<figure>{coverage_chart(coverage)}<figcaption><b>Coverage</b>Share of the true values inside the central "
            "intervals. On the dashed line the intervals keep what they promise; below it they are too narrow."
            "</figcaption></figure>"
        )
    charts += (
        f"<figure>{rank_chart(scores.histogram)}<figcaption><b>Rank of the truth among the draws</b>Even where the "
        "spread is right, high at both ends where it is too small, high in the middle where it is too large."
        "</figcaption></figure>"
    )
    return (
        '<section aria-labelledby="evidence-title"><h2 id="evidence-title">Against the truth</h2>'
        f'<div class="charts">{charts}</div><p class="hint">One image: its pixels depend on each other, so that this '
        "shows gross faults and proves nothing; calibration needs many images.</p></section>"
    )


def _table(rows: Sequence[Row], kind: str) -> str:
    if not rows:
        return "<p>None: neither the truth nor the operator is known.</p>"
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="text">{html.escape(value)}</td>'
        f'<td class="note">{html.escape(note)}</td></tr>'
        for name, value, note in rows
    )
    return f'<table class="{kind}"><tbody>{lines}</tbody></table>'


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
