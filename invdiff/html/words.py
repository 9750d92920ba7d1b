"""What the report says in words and figures; nothing here is escaped, the page does that."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..posterior import Posterior
from ..provenance import bare
from ..scores import Scores
from .charts import LEVELS, percent

__all__ = ["Row", "calibration_words", "complete_record", "figure_rows", "setting_rows", "subtitle", "summary"]

# Name, value, what it means.
Row = tuple[str, str, str]
# Where a file is, also after a kind, as in "dncnn:/home/me/a.pth".
_PLACE = re.compile(r"(\w\w+:)?(~|\.{0,2}[\\/]|[A-Za-z]:[\\/])")
_INVENTED = {
    "invented_variance": "what the draws differ in is the prior's, not the measurement's",
    "invented_detail": "energy that the prior made up and the measurement did not fix",
}


def subtitle(posterior: Posterior) -> str:
    """One sentence: what was computed, with what, from what."""
    record = _record(posterior)
    prior, solver = _name(record.get("prior")), _name(record.get("solver"))
    what = "A point estimate" if posterior.point else _count(posterior.usable, "draw")
    text = f"{what} by {solver} with the prior {prior}"
    operator, noise = record.get("operator"), record.get("noise") or {}
    if operator is None:
        return f"{text}, without a measurement."
    text += f", through {_name(operator)}"
    return text + (f" with noise of sigma {noise['sigma']:g}." if isinstance(noise.get("sigma"), float) else ".")


def calibration_words(posterior: Posterior) -> str:
    """What the spread of the draws is worth, in two sentences at most."""
    label, note = posterior.label, posterior.record.get("calibration")
    if posterior.point:
        return "One point estimate: it has no spread, and nothing here says how sure it is."
    if isinstance(note, Mapping) and note.get("guarantee"):
        return f"{note['guarantee']} Before: {note.get('before', 'uncalibrated spread')}."
    if isinstance(note, Mapping):
        return "It was scaled as other settings needed it: nothing is promised here."
    if label.startswith("heuristic"):
        return "The prior does not reach the noise levels that the sampler needs: the spread is a guess at best."
    return (
        "Nobody has checked, on other images, how often the truth lies inside it: it is what the sampler says, and no "
        "error bar."
    )


def figure_rows(figures: Mapping[str, Any], scores: Scores | None) -> list[Row]:
    """The table of figures.

    Args:
        figures: those of `restoration.figures` and more; names may be missing.
        scores: of the draws against the truth.
    """
    rows: list[Row] = []
    chi2 = figures.get("chi2") or {}
    if chi2.get("value") is not None:
        rows.append(("Residual chi²", f"{chi2['value']:.2f}", chi2.get("verdict") or "of a point estimate"))
    for key, name, unit, digits in (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 3)):
        if figures.get(key) is not None:
            before = figures.get(f"{key}_measurement")
            note = "" if before is None else f"the measurement has {before:.{digits}f}{unit}"
            rows.append((f"{name} of the {figures['restored']}", f"{figures[key]:.{digits}f}{unit}", note))
    if figures.get("psnr_draw") is not None:
        rows.append(("PSNR of one draw", f"{figures['psnr_draw']:.2f} dB", "on average; below that of the mean"))
    if figures.get("mean_std") is not None:
        rows.append(("Mean of the std", f"{figures['mean_std']:.4f}", figures["label"]))
    if figures.get("spread_ratio") is not None:
        rows.append(("Spread / error", f"{figures['spread_ratio']:.2f}", "1 where the spread is honest"))
    if scores is not None:
        rows.append(("CRPS", f"{scores.crps:.4f}", "in image units; the smaller, the better"))
        pairs = zip(LEVELS, scores.coverage, strict=True)
        found = [f"{percent(found, 1)}\xa0at\xa0{percent(level)}" for level, found in pairs if not math.isnan(found)]
        if found:
            rows.append(("Coverage", ", ".join(found), "values of this one image inside their central interval"))
    if figures.get("mean_error") is not None:
        value = f"{figures['mean_error']:.4f} of the mean, {figures['std_error']:.4f} of the std"
        rows.append(("Monte Carlo error", value, f"{figures['more_to_halve']} more draws would halve it"))
    for key, what in (("invented_variance", "the draws' variance"), ("invented_detail", "their fine detail")):
        if figures.get(key) is not None:
            rows.append((f"Invented share of {what}", percent(figures[key]), _INVENTED[key]))
    return rows


def setting_rows(posterior: Posterior) -> list[Row]:
    """What ran, for people; the complete record stands below it."""
    record, environment = _record(posterior), posterior.record.get("environment") or {}
    rows: list[Row] = [
        ("Solver", summary(record.get("solver")), ""),
        ("Prior", summary(record.get("prior")), _short_hash(record.get("prior"))),
        ("Operator", summary(record.get("operator")), _shapes(record.get("operator"))),
        ("Noise", summary(record.get("noise")), ""),
        ("Seed", str(record.get("seed", "unknown")), "draw k of a seed is the same draw whenever it is made"),
    ]
    if record.get("nfe"):
        back = f" and {record['nfe_backward']} passes back" if record.get("nfe_backward") else ""
        rows.append(("Cost of a draw", f"{record['nfe']} network evaluations{back}", ""))
    versions = [f"{name} {environment[name]}" for name in ("invdiff", "torch", "python") if environment.get(name)]
    if versions:
        rows.append(("Software", ", ".join(versions), _commit(environment)))
    if environment.get("device"):
        rows.append(("Machine", f"{environment['device']}, {environment.get('device_name', '')}".strip(", "), ""))
    return [row for row in rows if row[1]]


def complete_record(posterior: Posterior) -> str:
    """The record as JSON, without the paths of folders on this machine."""
    return json.dumps(_record(posterior), indent=2, default=str)


def summary(described: Any) -> str:
    """An object of the record by its name and its plain settings.

    >>> summary({"name": "DDRM", "steps": 20, "constants": {}})
    'DDRM (steps 20)'
    """
    if not isinstance(described, Mapping):
        return "none" if described is None else str(described)
    hidden = {"name", "prior", "in_shape", "out_shape", "sigma_range", "channels", "rank", "sha256", "compiled"}
    plain = [
        f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in described.items()
        if key not in hidden and isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    return _name(described) + (f" ({', '.join(plain)})" if plain else "")


def _record(posterior: Posterior) -> Any:
    return _without_folders(posterior.portable_record)


def _without_folders(value: Any) -> Any:
    """The same with the names alone of files, such as those of weights."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return bare(value) if isinstance(value, str) and _PLACE.match(value) else value


def _name(described: Any) -> str:
    if not isinstance(described, Mapping):
        return "unknown" if described is None else str(described)
    # A prior's own name says more than that of its class.
    return str(described.get("prior") or described.get("name", "unknown"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shapes(described: Any) -> str:
    if not isinstance(described, Mapping) or "in_shape" not in described:
        return ""
    found, seen = (" × ".join(map(str, described.get(key, ()))) for key in ("in_shape", "out_shape"))
    return f"images of {found}, measurements of {seen}"


def _short_hash(described: Any) -> str:
    found = described.get("sha256") if isinstance(described, Mapping) else None
    return f"weights {found[:16]}" if isinstance(found, str) else ""


def _commit(environment: Mapping[str, Any]) -> str:
    commit = environment.get("git_commit")
    return f"commit {commit[:12]}" if isinstance(commit, str) else ""
