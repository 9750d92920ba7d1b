"""Intervals that cover what they say, and files that come back as they were written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invdiff import Posterior


@pytest.mark.parametrize(("count", "level"), [(19, 0.9), (39, 0.9), (7, 0.5), (79, 0.95)])
def test_intervals_cover_a_further_draw_as_often_as_they_say(count, level):
    values = torch.randn(count + 1, 200_000, generator=torch.Generator().manual_seed(0))
    low, high = Posterior(values[1:], {}).interval(level)
    covered = float(((values[0] >= low) & (values[0] <= high)).float().mean())
    assert covered == pytest.approx(level, abs=0.004)


def test_between_whole_positions_the_coverage_stays_close():
    for count, level in ((32, 0.9), (8, 0.5)):
        values = torch.randn(count + 1, 200_000, generator=torch.Generator().manual_seed(0))
        low, high = Posterior(values[1:], {}).interval(level)
        covered = float(((values[0] >= low) & (values[0] <= high)).float().mean())
        assert covered == pytest.approx(level, abs=0.01)


def test_quantiles_equal_numpys_weibull():
    values = torch.randn(25, 30, generator=torch.Generator().manual_seed(0))
    for q in (0.05, 0.37, 0.5, 0.9):
        expected = np.quantile(values.numpy(), q, axis=0, method="weibull")
        np.testing.assert_allclose(Posterior(values, {}).quantile(q).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_too_few_draws_are_refused_with_the_number_needed():
    with pytest.raises(ValueError, match="A 90% interval needs at least 19 draws: this posterior has 18"):
        Posterior(torch.zeros(18, 2), {}).interval(0.9)
    Posterior(torch.zeros(19, 2), {}).interval(0.9)
    with pytest.raises(
        ValueError, match=r"A 97\.5% interval needs at least 79 draws: this posterior has 19; ask for more"
    ):
        Posterior(torch.zeros(19, 2), {}).interval(0.975)
    with pytest.raises(ValueError, match=r"The 0\.05 quantile needs at least 19 draws: this posterior has 18"):
        Posterior(torch.zeros(18, 2), {}).quantile(0.05)
    with pytest.raises(ValueError, match="std needs at least 2 draws: this posterior has 1"):
        Posterior(torch.zeros(1, 2), {}).std()
    with pytest.raises(ValueError, match=r"q is 1\.0: expected a probability"):
        Posterior(torch.zeros(18, 2), {}).quantile(1.0)


def test_save_and_load(tmp_path):
    original = Posterior(torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)), {"seed": 7}, "label")
    original.save(tmp_path / "posterior")
    loaded = Posterior.load(tmp_path / "posterior")
    assert loaded._draws is None, "the draws are read when they are first used"
    assert torch.equal(loaded.draws, original.draws)
    assert (loaded.record, loaded.label) == ({"seed": 7}, "label")
    np.testing.assert_array_equal(np.asarray(loaded), original.draws.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]
    (tmp_path / "other").touch()
    assert (tmp_path / "posterior").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_no_posterior_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file written by"):
        Posterior.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text is not a saved posterior"):
        Posterior.load(tmp_path / "text")


def test_the_shape_of_a_file_is_read_without_its_draws(tmp_path):
    Posterior(torch.zeros(4, 2, 3), {"solver": {"name": "DDRM"}}).save(tmp_path / "posterior")
    loaded = Posterior.load(tmp_path / "posterior")
    assert (len(loaded), loaded.shape, repr(loaded)) == (
        4,
        (4, 2, 3),
        "Posterior((4, 2, 3), DDRM, uncalibrated spread)",
    )
    assert loaded._draws is None
    assert loaded.draws.shape == loaded.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_of_draws_comes_back(tmp_path, dtype):
    from safetensors.torch import load_file

    draws = torch.randn(19, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    Posterior(draws, {"said": "\u00e4"}).save(tmp_path / "posterior")
    loaded = Posterior.load(tmp_path / "posterior")
    assert loaded.record == {"said": "\u00e4"}
    assert torch.equal(loaded.draws, draws)
    assert torch.equal(load_file(tmp_path / "posterior")["draws"], draws)


def test_draws_that_failed_are_counted_and_numbered_apart():
    draws = torch.arange(8.0).reshape(4, 2)
    record = {"measurements": 2, "batched": True, "failed": [{"draw": 1, "measurement": j, "step": 1} for j in (0, 1)]}
    posterior = Posterior(draws, record)
    assert [number for number, _ in posterior.each()] == [0, 2, 3]
    assert all(torch.equal(draw, draws[number]) for number, draw in posterior.each())
    assert posterior.usable == 3
    record = record | {"failed": [*record["failed"], {"draw": 2, "measurement": 1, "step": 1}]}
    half = Posterior(draws, record)
    assert [number for number, _ in half.each()] == [0, 2, 3]
    assert half.usable == 3
    torch.testing.assert_close(half.mean(), torch.stack([draws[[0, 2, 3], 0].mean(), draws[[0, 3], 1].mean()]))
    assert Posterior(draws, {}).usable == 4


def test_an_array_without_a_copy_where_that_can_be():
    posterior = Posterior(torch.zeros(2, 3), {})
    view = posterior.__array__(copy=False)
    assert np.shares_memory(view, posterior.draws.numpy())
    assert np.shares_memory(np.asarray(posterior), posterior.draws.numpy())
    assert not np.shares_memory(posterior.__array__(copy=True), posterior.draws.numpy())
    assert posterior.__array__(np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="draws are float32 on cpu: an array of float64 without a copy cannot be made"):
        posterior.__array__(np.float64, copy=False)


def test_two_that_save_to_one_file_do_not_meet(tmp_path, monkeypatch):
    """The first is overtaken by the second as it writes, and both end well."""
    from invdiff import export

    first, second = Posterior(torch.zeros(2, 3), {}), Posterior(torch.ones(2, 3), {})
    written, writing = [], export.safetensors

    def watched(posterior, path):
        writing(posterior, path)
        written.append(path)
        if posterior is first:
            second.save(tmp_path / "posterior")

    monkeypatch.setattr(export, "safetensors", watched)
    first.save(tmp_path / "posterior")
    assert len(set(written)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["posterior"]
    assert Posterior.load(tmp_path / "posterior").draws.eq(0).all()


def test_a_list_of_quantiles_is_refused_in_a_sentence():
    with pytest.raises(
        TypeError, match=r"^q is \[0.1, 0.9\]: expected one probability; call quantile once for each\.$"
    ):
        Posterior(torch.arange(19.0)[:, None], {}).quantile([0.1, 0.9])
