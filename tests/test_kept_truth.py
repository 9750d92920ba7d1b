"""What a folder keeps beside the draws: the truth, and enough to build operator and noise again."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from invdiff import Likelihood, Posterior, restore, sample
from invdiff.html import write_report
from invdiff.kept_truth import read_truth, same_truth
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM
from invdiff.stored import DamagedError

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
    assert torch.equal(read_truth(str(tmp_path / "run")), TRUTH)
    without = keep(tmp_path / "other")
    assert torch.equal(with_truth.draws, without.draws)
    assert read_truth(tmp_path / "other") is None
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
    assert torch.equal(read_truth(tmp_path / "run"), truth)
    with pytest.raises(ValueError, match=r"truth has shape \(1, 4, 4\): expected \(2, 1, 4, 4\), that of one draw"):
        keep(tmp_path / "new", given=given, truth=TRUTH)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        (
            (255 * TRUTH).to(torch.uint8),
            "truth is torch.uint8: expected floats in the units of the draws, as pixels / ",
        ),
        (torch.full(SHAPE, torch.nan), "truth holds values that are not finite: put numbers in their place, or leave"),
    ],
)
def test_a_truth_that_nothing_can_be_held_against_is_refused_before_the_first_draw(truth, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        keep(tmp_path / "run", truth=truth)
    assert not (tmp_path / "run").exists()


def test_a_truth_is_not_read_again_for_every_round(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("invdiff.store.same_truth", lambda path, truth: read.append(path) or same_truth(path, truth))
    with pytest.warns(UserWarning, match="after 12 draws, the most that there were to be"):
        found = keep(tmp_path / "run", "auto", truth=TRUTH, tolerance=1e-6, min_draws=4, max_draws=12)
    assert len(found) == 12
    assert len(read) <= 2


def test_a_report_says_where_its_truth_is_another_one(tmp_path):
    given = Likelihood(torch.full((2, *SHAPE), 0.6), Identity(SHAPE), GaussianNoise(0.1))
    truths = torch.stack([TRUTH, 1 - TRUTH])
    keep(tmp_path / "run", given=given, truth=truths)
    posterior, said = Posterior.load(tmp_path / "run"), "The truth is not that of the run to the last bit"
    for number, truth, other in ((1, None, False), (1, truths, False), (1, truths[1], False), (0, truths[1], True)):
        page = write_report(tmp_path / "r.html", posterior, number=number, truth=truth, overwrite=True)
        assert (said in page.read_text()) == other


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
    assert torch.equal(read_truth(tmp_path / "run"), result.truth)


def chunk(folder):
    (file,) = (path for path in (folder / "truth" / "x" / "c").rglob("*") if path.is_file())
    return file


def test_a_truth_that_is_damaged_or_gone_is_not_taken_for_a_black_one(tmp_path):
    keep(tmp_path / "whole", truth=TRUTH)
    whole, refused = (
        contents(tmp_path / "whole"),
        r"truth/x is damaged, or its file is gone: restore it from a copy, or",
    )
    for name, hurt in {
        "other bytes": lambda file: file.write_bytes(b"\xff" * file.stat().st_size),
        "gone": lambda file: file.unlink(),
    }.items():
        folder = tmp_path / name
        keep(folder, truth=TRUTH)
        hurt(chunk(folder))
        with pytest.raises(DamagedError, match=refused):
            read_truth(folder)
        with pytest.raises(DamagedError, match=refused):
            write_report(tmp_path / "r.html", Posterior.load(folder))
        keep(folder, truth=TRUTH)
        assert contents(folder) == whole, "what the same call does about it"


def test_a_black_truth_stays_one(tmp_path):
    keep(tmp_path / "run", truth=0 * TRUTH)
    assert torch.equal(read_truth(tmp_path / "run"), 0 * TRUTH)
    keep(tmp_path / "run", truth=0 * TRUTH)
    with pytest.raises(ValueError, match="run holds another truth than the one given"):
        keep(tmp_path / "run", truth=TRUTH)


def test_a_truth_of_an_earlier_version_has_no_hash(tmp_path):
    keep(tmp_path / "run", truth=TRUTH)
    for file in (tmp_path / "run" / "zarr.json", tmp_path / "run" / "truth" / "x" / "zarr.json"):
        file.write_text(re.sub(r'"attributes": \{\s*"sha256": "\w+"\s*\}', '"attributes": {}', file.read_text()))
    assert "sha256" not in (tmp_path / "run" / "truth" / "x" / "zarr.json").read_text()
    assert torch.equal(read_truth(str(tmp_path / "run")), TRUTH)
    chunk(tmp_path / "run").unlink()
    with pytest.raises(DamagedError, match=r"truth/x is damaged, or its file is gone"):
        read_truth(tmp_path / "run")
