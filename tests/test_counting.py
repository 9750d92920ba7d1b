"""The count of operator applications that the laboratory reports."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counting import counting
from invdiff import Likelihood, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask, Operator, gaussian_psf, random_mask
from invdiff.priors import GaussianPrior

SHAPE = (1, 8, 8)


def mask() -> Operator:
    return Mask(random_mask(SHAPE, 0.5, seed=0), SHAPE)


def calls(operator: Operator, work) -> float:
    counted, count = counting(operator)
    work(counted)
    return count.calls


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda a: a(torch.ones(3, *SHAPE)), 1),
        (lambda a: a.adjoint(torch.ones(3, *SHAPE)), 1),
        (lambda a: a.vt(torch.ones(3, *SHAPE)), 0.5),
        (lambda a: a.damped_pinv(torch.ones(3, *SHAPE), 0.1), 1),
        (lambda a: a.to("cpu").take([0])(torch.ones(1, *SHAPE)), 1),
        (lambda a: (a(torch.ones(1, *SHAPE)), a.pinv(torch.ones(1, *SHAPE))), 2),
    ],
)
def test_an_application_counts_once_and_a_change_of_coordinates_half(work, expected):
    assert calls(mask(), work) == expected


def test_the_way_back_through_the_operator_counts():
    def descend(a):
        x = torch.ones(2, *SHAPE, requires_grad=True)
        a(x).square().sum().backward()

    assert calls(mask(), descend) == 2


def test_an_inverse_by_iterations_counts_all_of_them():
    operator = Blur(gaussian_psf(1.0, 3), SHAPE, boundary="reflect")
    assert calls(operator, lambda a: a.pinv(torch.rand(1, *SHAPE))) > 10


def test_counting_changes_no_draw_and_no_record():
    prior = GaussianPrior.power_law(SHAPE)
    results = []
    for operator in (mask(), counting(mask())[0]):
        likelihood = Likelihood(torch.full(SHAPE, 0.4), operator, GaussianNoise(0.05))
        results.append(sample(solvers.load("dps", steps=5), likelihood, prior, draws=2))
    assert torch.equal(results[0].draws, results[1].draws)
    assert results[0].record["operator"] == results[1].record["operator"]
