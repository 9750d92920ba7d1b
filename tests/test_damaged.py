"""A folder of draws of which files were damaged, and one that an end left half extended."""

from __future__ import annotations

import errno
import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from invdiff import Likelihood, Posterior, layout, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.priors.base import Prior
from invdiff.solvers import DDRM

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior.power_law(SHAPE)


def keep(path: Path, draws: int = 5, prior: Prior = PRIOR) -> Posterior:
    likelihood = Likelihood(torch.full(SHAPE, 0.6), Identity(SHAPE), GaussianNoise(0.1))
    return sample(DDRM(steps=3), likelihood, prior, draws=draws, store=path, micro_batch=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def chunk(path: Path, row: int, name: str = "posterior/x") -> Path:
    return path / name / "c" / "0" / str(row) / ("0/0/0" if name == "posterior/x" else "")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def blank(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("hurt", [truncate, Path.unlink, blank])
def test_damaged_draws_are_named_where_they_are_read(tmp_path, hurt):
    path = tmp_path / "run"
    keep(path)
    before, file = contents(path), chunk(path, 1)
    hurt(file)
    remove = "" if hurt is Path.unlink else "remove it and "
    for statistic in (Posterior.mean, lambda posterior: posterior.quantile(0.5)):
        with pytest.raises(OSError, match=rf"{re.escape(str(file))} is damaged \(.*\): {remove}run the same sample"):
            statistic(Posterior.load(path))
    if hurt is blank:
        # Going on looks at the size alone.
        keep(path)
        file.unlink()
    with pytest.warns(UserWarning, match=rf"{re.escape(str(file))} is damaged: the draws 2 to 3 are computed again"):
        keep(path)
    assert contents(path) == before


def test_going_on_does_not_read_the_draws(tmp_path, monkeypatch):
    from invdiff.stored import Stored

    keep(tmp_path / "run", 4)
    monkeypatch.setattr(Stored, "read", None)
    assert len(keep(tmp_path / "run", 6)) == 6


@pytest.mark.filterwarnings("ignore:.* draws are not finite")
@pytest.mark.parametrize("name", ["done", "failed_step", "nfe"])
@pytest.mark.parametrize("hurt", [truncate, blank])
def test_damaged_marks_take_their_micro_batch_alone(tmp_path, name, hurt):
    path = tmp_path / "run"
    with pytest.warns(UserWarning, match="2 of 5 draws are not finite"):
        keep_half(path)
    first, before, file = Posterior.load(path).draws[0], contents(path), chunk(path, 1, f"sample_stats/{name}")
    hurt(file)
    said = re.escape(f"{file} is damaged: the draws 2 to 3 count as not there; run the same sample(...) again, which")
    with pytest.warns(UserWarning, match=said):
        loaded = Posterior.load(path)
    assert len(loaded) == 2
    assert loaded.record["interrupted"]
    assert torch.equal(loaded.mean(), first)
    # Those that are asked for are all there, and nothing is said of others.
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", message="1 of 2 draws are not finite")
        assert torch.equal(keep_half(path, 2).mean(), first)
    with pytest.warns(UserWarning, match=rf"{re.escape(str(file))} is damaged: the draws 2 to 3 are computed again"):
        keep_half(path)
    assert contents(path) == before


def keep_half(path: Path, draws: int = 5) -> Posterior:
    """The second of every two draws is not finite, so that every mark has a file."""

    def prior(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        x0 = PRIOR(x, sigma)
        x0[1] = torch.nan
        return x0

    return keep(path, draws, FunctionPrior(prior, name="spoils one", per_member=True))


def test_a_mark_that_is_not_there_counts_as_no_draw(tmp_path):
    keep(tmp_path / "run")
    before = contents(tmp_path / "run")
    chunk(tmp_path / "run", 1, "sample_stats/done").unlink()
    with warnings.catch_warnings(action="error"):
        assert len(Posterior.load(tmp_path / "run")) == 2
        keep(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_damaged_last_chunk_that_grows_is_computed_again(tmp_path):
    keep(tmp_path / "run", 3)
    truncate(chunk(tmp_path / "run", 1))
    with pytest.warns(UserWarning, match="the draws 2 to 2 are computed again"):
        keep(tmp_path / "run", 6)
    keep(tmp_path / "whole", 6)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def alter(path: Path) -> None:
    root = json.loads(path.read_text())
    root["attributes"]["settings"]["solver"]["eta"] = 0.5
    path.write_text(json.dumps(root))


@pytest.mark.parametrize("hurt", [truncate, alter])
def test_damaged_settings_are_named_and_the_draws_left_alone(tmp_path, hurt):
    path = tmp_path / "run"
    keep(path, 4)
    whole = (path / "zarr.json").read_bytes()
    hurt(path / "zarr.json")
    before = contents(path)
    for run in (lambda: keep(path, 6), lambda: Posterior.load(path)):
        with pytest.raises(
            OSError, match=r"zarr\.json is damaged, which says what the draws beside it are of: restore"
        ):
            run()
    assert contents(path) == before
    (path / "zarr.json").write_bytes(whole)
    assert len(keep(path, 6)) == 6


def test_the_folder_of_a_newer_invdiff_is_refused(tmp_path):
    path = tmp_path / "run"
    keep(path, 2)
    root = json.loads((path / "zarr.json").read_text())
    assert root["attributes"]["format"] == 1
    root["attributes"]["format"] = 2
    (path / "zarr.json").write_text(json.dumps(root))
    for run in (lambda: keep(path, 6), lambda: Posterior.load(path)):
        with pytest.raises(
            ValueError, match=r"run has the format 2 of a newer invdiff, and this one reads 1: update it, or choose"
        ):
            run()


@pytest.mark.parametrize("draws", [4, 6])
def test_the_settings_of_an_array_are_read_from_the_root_and_mended(tmp_path, draws):
    path = tmp_path / "run"
    keep(path, 4)
    (path / "posterior" / "x" / "zarr.json").write_text("{")
    assert len(keep(path, draws)) == draws
    keep(tmp_path / "whole", draws)
    assert contents(path) == contents(tmp_path / "whole")


def test_an_extension_that_ended_in_between_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "run"
    keep(path, 2)
    before = contents(path)

    def end(folder: Path) -> None:
        raise SystemExit

    monkeypatch.setattr(layout, "consolidate", end)
    with pytest.raises(SystemExit):
        keep(path, 4)
    monkeypatch.undo()
    assert contents(path) != before
    keep(path, 2)
    assert contents(path) == before


def test_a_disk_that_is_full_when_it_is_extended(tmp_path, monkeypatch):
    path = tmp_path / "run"
    keep(path, 2)

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "consolidate", full)
    said = r"run could not be written to \(No space left on device; \d+ MB are free\): 2 of 2 draws are kept; make room"
    with pytest.raises(OSError, match=said):
        keep(path, 4)
    monkeypatch.undo()
    keep(path, 4)
    keep(tmp_path / "whole", 4)
    assert contents(path) == contents(tmp_path / "whole")
