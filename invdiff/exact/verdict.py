"""What the figures of a solver's draws mean, in words: whether their spread can be used as an error bar.

Every figure is held against what exact draws of the same number give, over several sets of them, so that Monte Carlo
error is not taken for a bias and no bias for Monte Carlo error. Three grades follow:

    exact   every figure lies within the floor of exact draws: the error bars can be used
    close   some lie outside, none by more than TOLERANCE: the error bars can be used as a rough guide
    wrong   one lies outside by more: the words say which, by how much, and what not to do
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["DISTANCES", "FIGURES", "TOLERANCE", "Floor", "Outcome", "judge", "overall"]

FIGURES = {
    "mean_observed": "error of the mean where the operator sees, posterior stds",
    "mean_null": "error of the mean where it does not see, posterior stds",
    "spread_observed": "std of the draws over the posterior's where the operator sees",
    "spread_null": "the same where it does not see",
    "sw1": "sliced 1-Wasserstein distance to exact draws, posterior stds (mixtures: units of x)",
    "sw2": "the same of order 2",
    "energy": "energy distance to exact draws, the root of those units",
    "weights_tv": "total variation between the weights of the modes",
    "coverage50": "true coverage of nominal 50 % intervals",
    "coverage90": "true coverage of nominal 90 % intervals",
    "hdr90": "true coverage of the nominal 90 % region of highest density (heavy tails)",
    "chi2": "mean square of the residual over that of the noise",
}
DISTANCES = ("sw1", "sw2", "energy")
# Beyond the floor, what still makes a rough guide: mean error in posterior stds, relative error of the std, coverage
# of the 90 % interval, total variation of the mode weights, distance in floors, relative error of chi^2.
TOLERANCE = {"mean": 0.25, "spread": 0.1, "coverage": 0.03, "weights": 0.1, "distance": 2.0, "chi2": 0.2}
_KINDS = ("weights", "spread", "mean", "coverage", "distance", "chi2")


@dataclass(frozen=True)
class Floor:
    """What sets of exact draws give, of the size of the solver's: mean and standard deviation of each figure.

    >>> floor = Floor({"spread_observed": 1.0, "sw2": 0.1}, {"spread_observed": 0.02, "sw2": 0.01})
    >>> floor.holds("spread_observed", 0.95), floor.holds("spread_observed", 0.5), floor.holds("sw2", 0.01)
    (True, False, True)
    """

    typical: Mapping[str, float]
    deviation: Mapping[str, float]

    def holds(self, name: str, value: float) -> bool:
        """Whether exact draws give such a figure: within four deviations, and errors may always be smaller."""
        off = value - self.typical[name]
        if name.startswith(("spread", "coverage", "hdr", "chi2")):
            off = abs(off)
        most = 4 * self.deviation[name] + 1e-3
        # The error of a few weights is that of one or two binomials, whose tail a dozen sets do not show.
        return off <= (max(most, 4 * self.typical[name]) if name == "weights_tv" else most)


@dataclass(frozen=True)
class Outcome:
    """One problem of the laboratory, run: figures, floor and verdict; or why it was not.

    Args:
        problem: its name.
        family: "gaussian", "mixture25", "mixture16", "heavy" or "nonlinear".
        grade: "exact", "close", "wrong", "point", "refused" (the solver says that it does not apply) or "failed".
        words: the verdict, or the sentence of the refusal or failure.
        mode: how the draws hang together: "independent", "one of 64", "all of 64" particles of a cloud, "point".
        draws: their number.
        figures: of FIGURES, NaN where a figure does not exist.
        floor: of exact draws.
        intervals: of 95 %, of the distances; none where the draws depend on each other.
        nfe, nfe_backward: denoiser calls, and passes back through it, per draw.
        seconds: of the run.
    """

    problem: str
    family: str
    grade: str
    words: str
    mode: str = ""
    draws: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    floor: Floor | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    nfe: int = 0
    nfe_backward: int = 0
    seconds: float = 0.0

    @property
    def ran(self) -> bool:
        """Whether there are figures."""
        return self.grade not in ("refused", "failed")


def judge(figures: Mapping[str, float], floor: Floor, noun: str = "pixels") -> tuple[str, str]:
    """Grade and verdict in words of the figures of draws; see the module docstring.

    Args:
        figures: of FIGURES; those that are NaN are left out.
        floor: of exact draws of the same number.
        noun: what the operator sees or does not: "pixels", "components", or all "values" where it is not linear.

    >>> floor = Floor({"spread_observed": 1.0, "coverage90": 0.9}, {"spread_observed": 0.02, "coverage90": 0.01})
    >>> judge({"spread_observed": 0.51, "coverage90": 0.59}, floor)[1]
    'spread 0.51 of the true one in observed pixels, its 90 % intervals hold the truth 59 % of the time: do not use its std as an error bar'
    >>> judge({"spread_observed": 1.01, "coverage90": 0.9}, floor)
    ('exact', 'within the Monte Carlo floor of exact draws: its error bars can be used')
    """  # noqa: E501
    if math.isnan(figures.get("spread_observed", 0.0)):
        parts = [
            (figures.get("mean_observed", math.nan), "observed"),
            (figures.get("mean_null", math.nan), "unobserved"),
        ]
        errors = [f"{value:.2f} posterior stds in {part} {noun}" for value, part in parts if not math.isnan(value)]
        return "point", f"a point estimate without error bars, off the posterior mean by {' and '.join(errors)}"
    found = sorted(_findings(figures, floor, noun), reverse=True)
    if not found:
        return "exact", "within the Monte Carlo floor of exact draws: its error bars can be used"
    serious = [finding for finding in found if finding[0] > 1]
    if not serious:
        return "close", f"close to exact draws ({_worst(found)[0]}): its error bars can be used as a rough guide"
    kinds = {kind for _, _, kind in serious}
    if kinds & {"spread", "coverage"}:
        advice = "do not use its std as an error bar"
    elif kinds == {"mean"}:
        advice = "its error bars stand around the wrong value"
    elif "weights" in kinds:
        advice = "do not read probabilities off its draws"
    else:
        advice = "its draws are not the posterior's"
    return "wrong", f"{', '.join(_worst(serious)[:2])}: {advice}"


def _worst(found: Sequence[tuple[float, str, str]]) -> list[str]:
    """The worst finding of each kind, in the order of _KINDS: the second space mostly says the same again."""
    worst = {kind: words for _, words, kind in reversed(found)}
    return [worst[kind] for kind in _KINDS if kind in worst]


def _where(part: str, noun: str) -> str:
    if noun == "values":
        return "all values"
    return f"{'unobserved' if part == 'null' else 'observed'} {noun}"


def _findings(figures: Mapping[str, float], floor: Floor, noun: str) -> list[tuple[float, str, str]]:
    """(severity, words, kind) of every figure outside the floor; a severity above 1 is beyond TOLERANCE."""
    found = []
    for name, value in figures.items():
        if name not in floor.typical or not math.isfinite(floor.typical[name]) or math.isnan(value):
            continue
        if floor.holds(name, value):
            continue
        kind, _, part = name.partition("_")
        typical = floor.typical[name]
        where = _where(part, noun)
        if kind == "spread":
            severity = abs(math.log(max(value, 1e-6))) / math.log1p(TOLERANCE["spread"])
            words = f"spread {value:.2f} of the true one in {where}"
        elif kind == "mean":
            severity, words = value / TOLERANCE["mean"], f"mean off by {value:.2f} posterior stds in {where}"
        elif kind == "weights":
            severity, words = value / TOLERANCE["weights"], f"weights of the modes off by {value:.2f}"
        elif kind in ("coverage50", "coverage90", "hdr90"):
            level = int(name[-2:])
            severity = abs(value - (typical if name == "hdr90" else level / 100)) / TOLERANCE["coverage"]
            regions = f"{level} % regions of highest density" if name == "hdr90" else f"{level} % intervals"
            words, kind = f"its {regions} hold the truth {100 * value:.0f} % of the time", "coverage"
        elif kind == "chi2":
            severity = abs(math.log(max(value, 1e-6) / typical)) / math.log1p(TOLERANCE["chi2"])
            words = f"residual chi^2 {value:.2f} where exact draws have {typical:.2f}"
        else:
            severity, kind = value / typical / TOLERANCE["distance"], "distance"
            words = f"{value / typical:.1f} times as far from the posterior as exact draws"
        found.append((severity, words, kind))
    return found


def overall(outcomes: Sequence[Outcome]) -> str:
    """The verdict over all problems, in one or two sentences.

    >>> overall([Outcome("a", "gaussian", "refused", "DDRM needs an operator with an SVD.")])
    'Applies to none of the 1 problem: see the reasons above.'
    """
    ran = [outcome for outcome in outcomes if outcome.ran]
    failed = [outcome for outcome in outcomes if outcome.grade == "failed"]
    rest = f" It failed on {_names(failed)}." if failed else ""
    if not ran:
        if outcomes and len(failed) == len(outcomes):
            if len(failed) == 1:
                return "Failed on the one problem: see the reason above."
            return f"Failed on all {len(failed)} problems: see the reasons above."
        count = f"{len(outcomes)} problem{'s' if len(outcomes) != 1 else ''}"
        return f"Applies to none of the {count}: see the reasons above.{rest}"
    refused = len(outcomes) - len(ran) - len(failed)
    if refused:
        rest = f" It does not apply to {refused} of {len(outcomes)}.{rest}"
    if all(outcome.grade == "point" for outcome in ran):
        errors = _span([_of(o, name) for o in ran for name in ("mean_observed", "mean_null")])
        return f"A point estimate, which has no error bars: {errors} posterior stds from the posterior mean.{rest}"
    good = [outcome for outcome in ran if outcome.grade == "exact"]
    near = [outcome for outcome in ran if outcome.grade == "close"]
    bad = [outcome for outcome in ran if outcome.grade == "wrong"]
    if not bad and not near:
        return f"Within the Monte Carlo floor of exact draws on {_all(ran)}: its error bars can be used.{rest}"
    if not bad and not good:
        return f"Close to exact draws on {_all(ran)}: its error bars can be used as a rough guide.{rest}"
    if not bad:
        return (
            f"Within the Monte Carlo floor of exact draws on {len(good)} of {len(ran)}, close to it on the others: "
            f"its error bars can be used as a rough guide.{rest}"
        )
    ratios = _span([value for o in bad for value in (_of(o, "spread_observed"), _of(o, "spread_null"))])
    covers = _span([100 * _of(o, "coverage90") for o in bad], digits=0)
    figures = (
        f"there its spread is {ratios} of the true one, and its 90 % intervals hold the truth {covers} % of the time"
    )
    if not good and not near:
        return f"Do not use its std as an error bar: wrong on {_all(ran)}; {figures}.{rest}"
    usable = f"Its error bars can be used on {_names(good)}" if good else "Its error bars are exact nowhere"
    roughly = f", as a rough guide on {_names(near)}" if near else ""
    return f"{usable}{roughly}; do not use them on {_names(bad)}: {figures}.{rest}"


def _of(outcome: Outcome, name: str) -> float:
    return outcome.figures.get(name, math.nan)


def _names(outcomes: Sequence[Outcome]) -> str:
    """Their names, or how many there are where these would fill the screen."""
    return ", ".join(o.problem for o in outcomes) if len(outcomes) <= 6 else f"{len(outcomes)} problems"


def _all(outcomes: Sequence[Outcome]) -> str:
    return f"all {len(outcomes)}" if len(outcomes) > 1 else "the one that it ran on"


def _span(values: Sequence[float], digits: int = 2) -> str:
    """The smallest to the largest of the values that exist, or the one that they all are."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "unknown"
    low, high = f"{min(finite):.{digits}f}", f"{max(finite):.{digits}f}"
    return low if low == high else f"{low} to {high}"
