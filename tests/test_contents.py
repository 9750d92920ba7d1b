"""Operators and noises that are built again from what a folder keeps do what the first ones did."""

from __future__ import annotations

import pytest
import torch

from invdiff import Likelihood, Posterior, sample
from invdiff.contents import contents, rebuild_noise, rebuild_operator, require_same_operator
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    Mask,
    Matrix,
    from_function,
    gaussian_psf,
    random_mask,
    stack,
)
from invdiff.priors import GaussianPrior
from invdiff.record import describe
from invdiff.solvers import DPS

SHAPE = (3, 8, 8)
PSF = gaussian_psf(0.7)
MASK = random_mask(SHAPE, 0.5, seed=1)
OPERATORS = {
    "identity": Identity(SHAPE),
    "mask": Mask(MASK, SHAPE),
    "circular blur": Blur(PSF, SHAPE),
    "padded blur": Blur(PSF, SHAPE, "reflect"),
    "valid blur": Blur(PSF, SHAPE, "valid"),
    "box": Downsample(2, SHAPE),
    "bicubic": Downsample(2, SHAPE, "bicubic"),
    "gray": Grayscale(SHAPE, "bt709"),
    "matrix": Matrix(torch.arange(192.0).remainder(7).reshape(1, 192).repeat(4, 1), SHAPE),
    "multiple": 2.5 * Blur(PSF, SHAPE),
    "gray of a reduction": Grayscale((3, 4, 4)) @ Downsample(2, SHAPE),
    "product": Mask(MASK, SHAPE) @ Blur(PSF, SHAPE, "zero"),
    "sum": Blur(PSF, SHAPE, "zero") + 0.5 * Identity(SHAPE),
    "stack": stack(Mask(MASK, SHAPE), Grayscale(SHAPE)),
    "transpose": Downsample(2, SHAPE).T,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_from_a_folder_is_the_one_that_was_kept(tmp_path, name):
    operator = OPERATORS[name]
    x = torch.rand(1, *operator.in_shape, generator=torch.Generator().manual_seed(0))
    y = operator(x)[0]
    prior = GaussianPrior.power_law(operator.in_shape)
    likelihood = Likelihood(y, operator, GaussianNoise(0.1))
    sample(DPS(steps=2), likelihood, prior, store=tmp_path / "run", progress=False)
    found = contents(Posterior.load(tmp_path / "run"))
    assert found.operator is not None
    assert torch.equal(found.operator(x)[0], y)
    assert torch.equal(found.measurement, y)
    assert found.noise == GaussianNoise(0.1)
    assert found.truth is None
    require_same_operator(found.operator, describe(operator))


def test_a_measurement_that_is_not_there_any_more_is_not_taken_for_a_black_one(tmp_path):
    likelihood = Likelihood(
        torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)), Identity(SHAPE), GaussianNoise(0.1)
    )
    sample(DPS(steps=2), likelihood, GaussianPrior.power_law(SHAPE), draws=2, store=tmp_path / "run")
    assert torch.equal(contents(Posterior.load(tmp_path / "run")).measurement, likelihood.y)
    for chunk in (tmp_path / "run" / "observed_data" / "y" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(OSError, match=r"observed_data.y does not hold the measurement that the draws were made of"):
        contents(Posterior.load(tmp_path / "run"))


def test_a_mask_that_is_not_there_any_more_is_not_taken_for_one_of_zeros(tmp_path):
    operator = Grayscale(SHAPE) @ Mask(MASK, SHAPE)
    y = operator(torch.ones(1, *SHAPE))[0]
    likelihood = Likelihood(y, operator, GaussianNoise(0.1))
    sample(DPS(steps=2), likelihood, GaussianPrior.power_law(SHAPE), store=tmp_path / "run", progress=False)
    for chunk in (tmp_path / "run" / "constant_data" / "1_mask" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(OSError, match=r"constant_data.1_mask does not hold what the operator of the draws was built"):
        contents(Posterior.load(tmp_path / "run"))


def test_without_a_folder_operators_that_need_no_array_are_built_again():
    for operator, wanted in ((Identity(SHAPE), True), (2 * Downsample(2, SHAPE), True), (Mask(MASK, SHAPE), False)):
        found = contents(Posterior(torch.zeros(2, *SHAPE), {"operator": describe(operator)})).operator
        assert (found is not None) == wanted
        if found is not None:
            x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
            assert torch.equal(found(x), operator(x))


def test_what_cannot_be_built_again_is_none():
    described = describe(from_function(lambda x: x.flip(3), in_shape=SHAPE))
    assert rebuild_operator(described, {}) is None
    assert rebuild_operator(None, {}) is None
    # Of circular convolutions in a product the folder keeps no kernel; of a mask that was lost, no mask.
    assert rebuild_operator(describe(Grayscale(SHAPE) @ Blur(PSF, SHAPE)), {}) is None
    assert rebuild_operator(describe(Downsample(2, SHAPE, PSF)), {}) is None
    assert rebuild_operator(describe(Mask(MASK, SHAPE)), {}) is None
    assert rebuild_operator(describe(2 * from_function(lambda x: x, in_shape=SHAPE)), {}) is None
    assert contents(Posterior(torch.zeros(2, *SHAPE), {})).measurement is None


def test_noises_by_their_numbers():
    assert rebuild_noise(describe(PoissonNoise(0.01))) == PoissonNoise(0.01)
    assert rebuild_noise(describe(GaussianNoise(torch.full(SHAPE, 0.1)))) is None
    assert rebuild_noise({"name": "mine.Noise", "sigma": 0.1}) is None
    assert rebuild_noise(None) is None


def test_another_operator_is_told_by_what_it_was_given():
    with pytest.raises(ValueError, match=r"not the one that the draws are of: its mask is \w+, and the record says \w"):
        require_same_operator(Mask(1 - MASK, SHAPE), describe(Mask(MASK, SHAPE)))
    with pytest.raises(ValueError, match="its boundary is zero, and the record says reflect; give the operator of"):
        require_same_operator(Blur(PSF, SHAPE, "zero"), describe(Blur(PSF, SHAPE, "reflect")))
    with pytest.raises(ValueError, match="An operator is given, and these are draws of the prior alone: leave it out"):
        require_same_operator(Identity(SHAPE), None)
