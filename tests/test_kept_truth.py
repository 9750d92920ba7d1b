"""What a folder keeps beside the draws: the truth, and enough to build operator and noise again."""

from __future__ import annotations

import warnings

import pytest
import torch

from invdiff import Likelihood, restore, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM
from invdiff.stored import DamagedError, read_constants

SHAPE = (1, 4, 4)
SOLVER = DDRM(steps=3)
PRIOR = GaussianPrior.power_law(SHAPE)
TRUTH = torch.linspace(0, 1, 16).reshape(SHAPE)


def keep(path, draws=4, given=None, **settings):
    y = torch.full(SHAPE, 0.6)
    likelihood = given or Likelihood(y, Identity(SHAPE), GaussianNoise(0.1))
    return sample(SOLVER, likelihood, PRIOR, draws=draws, store=path, micro_batch=2, **settings)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_truth_is_kept_and_changes_no_draw(tmp_path):
    with_truth = keep(tmp_path / "run", truth=TRUTH)
    assert torch.equal(read_constants(tmp_path / "run", "truth")["x"], TRUTH)
    without = keep(tmp_path / "other")
    assert torch.equal(with_truth.draws, without.draws)
    assert read_constants(tmp_path / "other", "truth") == {}
    assert with_truth.record | {"store": "", "seconds": 0} == without.record | {"store": "", "seconds": 0}


def test_a_truth_that_comes_later_gives_the_same_bytes(tmp_path):
    for draws, truth in ((2, None), (3, TRUTH), (6, TRUTH), (5, None)):
        keep(tmp_path / "pieces", draws, truth=truth)
    keep(tmp_path / "whole", 6, truth=TRUTH)
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


def test_a_truth_whose_writing_was_interrupted_is_written_again(tmp_path):
    keep(tmp_path / "run", 2)
    half = tmp_path / "run" / "truth" / "x"
    half.mkdir(parents=True)
    (half / "zarr.json").write_text("{")
    with warnings.catch_warnings(action="error"):
        keep(tmp_path / "run", 4, truth=TRUTH)
    keep(tmp_path / "whole", 4, truth=TRUTH)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_another_truth_is_refused(tmp_path):
    keep(tmp_path / "run", truth=TRUTH)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="run holds another truth than the one given: leave the truth out, or use an"):
        keep(tmp_path / "run", 6, truth=TRUTH + 0.1)
    assert contents(tmp_path / "run") == before


def test_one_truth_for_each_measurement(tmp_path):
    given = Likelihood(torch.full((2, *SHAPE), 0.6), Identity(SHAPE), GaussianNoise(0.1))
    truth = torch.stack([TRUTH, 1 - TRUTH])
    keep(tmp_path / "run", given=given, truth=truth)
    assert torch.equal(read_constants(tmp_path / "run", "truth")["x"], truth)
    with pytest.raises(ValueError, match=r"truth has shape \(1, 4, 4\): expected \(2, 1, 4, 4\), that of one draw"):
        keep(tmp_path / "new", given=given, truth=TRUTH)
    assert not (tmp_path / "new").exists()


def test_a_truth_without_a_folder_is_refused():
    given = Likelihood(TRUTH, Identity(SHAPE), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="truth is given without a store: it is kept beside the draws"):
        sample(SOLVER, given, PRIOR, truth=TRUTH)


def test_restore_keeps_its_truth(tmp_path):
    image = TRUTH[0].numpy().astype("float32")
    image = image.repeat(4, 0).repeat(4, 1)
    result = restore(
        image, sigma=0.1, prior="tv", solver="pnp_admm", simulate=True, store=tmp_path / "run", progress=False
    )
    assert torch.equal(read_constants(tmp_path / "run", "truth")["x"], result.truth)


def test_a_damaged_truth_is_named(tmp_path):
    keep(tmp_path / "run", truth=TRUTH)
    (file,) = (path for path in (tmp_path / "run" / "truth" / "x" / "c").rglob("*") if path.is_file())
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(DamagedError, match=r"truth/x is damaged \(.*: restore it from a copy, or remove run"):
        read_constants(tmp_path / "run", "truth")
