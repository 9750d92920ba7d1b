"""Verdicts in words from figures alone."""

from __future__ import annotations

import pytest

from invdiff.exact.verdict import Floor, Outcome, judge, overall

FLOOR = Floor(
    {"mean_observed": 0.06, "spread_observed": 1.0, "coverage90": 0.9, "weights_tv": 0.02, "sw2": 0.1, "chi2": 0.95},
    {
        "mean_observed": 0.01,
        "spread_observed": 0.01,
        "coverage90": 0.002,
        "weights_tv": 0.01,
        "sw2": 0.01,
        "chi2": 0.01,
    },
)
RIGHT = {"mean_observed": 0.06, "spread_observed": 1.0, "coverage90": 0.9, "weights_tv": 0.02, "sw2": 0.1, "chi2": 0.95}


def outcome(name: str, grade: str, **figures: float) -> Outcome:
    return Outcome(name, "gaussian", grade, "", figures=figures)


@pytest.mark.parametrize(
    ("change", "grade", "words"),
    [
        ({}, "exact", "within the Monte Carlo floor of exact draws: its error bars can be used"),
        ({"mean_observed": 0.0, "sw2": 0.0}, "exact", "within the Monte Carlo floor"),
        ({"spread_observed": 1.06}, "close", "close to exact draws (spread 1.06 of the true one in observed pixels)"),
        (
            {"spread_observed": 0.51},
            "wrong",
            "spread 0.51 of the true one in observed pixels: do not use its std as an error bar",
        ),
        ({"spread_observed": 0.0}, "wrong", "spread 0.00 of the true one in observed pixels: do not use its std"),
        (
            {"mean_observed": 0.4},
            "wrong",
            "mean off by 0.40 posterior stds in observed pixels: its error bars stand around the wrong value",
        ),
        (
            {"coverage90": 0.59},
            "wrong",
            "its 90 % intervals hold the truth 59 % of the time: do not use its std as an error bar",
        ),
        ({"weights_tv": 0.3}, "wrong", "weights of the modes off by 0.30: do not read probabilities off its draws"),
        (
            {"sw2": 0.5},
            "wrong",
            "5.0 times as far from the posterior as exact draws: its draws are not the posterior's",
        ),
        ({"chi2": 0.2}, "wrong", "residual chi^2 0.20 where exact draws have 0.95: its draws are not the posterior's"),
        (
            {"chi2": 0.2, "mean_observed": 0.4, "spread_observed": 0.5},
            "wrong",
            "spread 0.50 of the true one in observed pixels, mean off by 0.40 posterior stds in observed pixels: do n",
        ),
    ],
)
def test_the_worst_is_said_first_and_what_not_to_do(change, grade, words):
    found, said = judge(RIGHT | change, FLOOR)
    assert found == grade
    assert said.startswith(words)


def test_unobserved_parts_and_maps_that_are_not_linear_have_their_own_words():
    floor = Floor({"spread_null": 1.0, "spread_observed": 1.0}, {"spread_null": 0.01, "spread_observed": 0.01})
    assert "in unobserved components" in judge({"spread_observed": 1.0, "spread_null": 1.5}, floor, "components")[1]
    assert "spread 1.50 of the true one in all values" in judge({"spread_observed": 1.5}, floor, "values")[1]


def test_a_point_estimate_is_not_judged_for_a_spread():
    nan = float("nan")
    grade, words = judge({"mean_observed": 0.3, "mean_null": 0.5, "spread_observed": nan, "spread_null": nan}, FLOOR)
    assert grade == "point"
    assert words == (
        "a point estimate without error bars, off the posterior mean by 0.30 posterior stds in observed pixels and "
        "0.50 posterior stds in unobserved pixels"
    )


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (
            [outcome("a", "exact"), outcome("b", "exact")],
            "Within the Monte Carlo floor of exact draws on all 2: its error bars can be used.",
        ),
        (
            [outcome("a", "exact"), outcome("b", "close")],
            "Within the Monte Carlo floor of exact draws on 1 of 2, close to it on the others: its error bars can be "
            "used as a rough guide.",
        ),
        (
            [outcome("a", "close"), outcome("b", "close")],
            "Close to exact draws on all 2: its error bars can be used as a rough guide.",
        ),
        (
            [outcome("a", "wrong", spread_observed=0.5, coverage90=0.6), outcome("b", "wrong", spread_observed=0.9)],
            "Do not use its std as an error bar: wrong on all 2; there its spread is 0.50 to 0.90 of the true one, and "
            "its 90 % intervals hold the truth 60 % of the time.",
        ),
        (
            [outcome("a", "exact"), outcome("b", "wrong", spread_null=2.0, coverage90=0.97), outcome("c", "close")],
            "Its error bars can be used on a, as a rough guide on c; do not use them on b: there its spread is 2.00 of "
            "the true one, and its 90 % intervals hold the truth 97 % of the time.",
        ),
        (
            [outcome("a", "point", mean_observed=0.1), outcome("b", "point", mean_observed=0.3, mean_null=0.2)],
            "A point estimate, which has no error bars: 0.10 to 0.30 posterior stds from the posterior mean.",
        ),
        (
            [outcome("a", "exact"), outcome("b", "refused"), outcome("c", "failed")],
            "Within the Monte Carlo floor of exact draws on the one that it ran on: its error bars can be used. It "
            "does not apply to 1 of 3. It failed on c.",
        ),
        (
            [outcome("a", "refused"), outcome("b", "refused")],
            "Applies to none of the 2 problems: see the reasons above.",
        ),
        (
            [outcome("a", "failed"), outcome("b", "failed")],
            "Failed on all 2 problems: see the reasons above.",
        ),
        ([outcome("a", "failed")], "Failed on the one problem: see the reason above."),
        (
            [outcome("a", "failed"), outcome("b", "refused")],
            "Applies to none of the 2 problems: see the reasons above. It failed on a.",
        ),
        (
            [outcome(str(k), "exact") for k in range(7)] + [outcome("x", "wrong")],
            "Its error bars can be used on 7 problem",
        ),
    ],
)
def test_the_verdict_over_all_problems(outcomes, words):
    assert overall(outcomes).startswith(words)
