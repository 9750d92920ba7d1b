"""As many draws as a tolerance needs: the same number with a folder, without, after a stop, and on workers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from invdiff import Likelihood, Posterior, restore, running, sample
from invdiff.montecarlo import Auto, Watch, standard_errors
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.priors.base import Prior
from invdiff.progress import Progress
from invdiff.solvers import DDRM, KPSCloud, PnPPGD
from invdiff.stored import Stored

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior(torch.full(SHAPE, 0.5), 0.04 * torch.eye(16))
LIKELIHOOD = Likelihood(torch.full(SHAPE, 0.4), Identity(SHAPE), GaussianNoise(0.1))
# A posterior std of 0.09 and a spread of DDRM near to it: some 36 draws.
SETTINGS = {"draws": "auto", "tolerance": 0.015, "micro_batch": 4, "progress": False}


def _run(likelihood=LIKELIHOOD, prior=PRIOR, solver=None, **change) -> Posterior:
    return sample(solver or DDRM(steps=8), likelihood, prior, **(SETTINGS | change))


@pytest.fixture(scope="module")
def run() -> Posterior:
    return _run()


def test_it_stops_at_the_first_whole_micro_batch_under_the_tolerance(run):
    count = len(run)
    assert count % 4 == 0
    assert 20 < count < 60
    assert max(standard_errors(run).rms()) <= 0.015
    assert torch.equal(run.draws, _run(draws=count, tolerance=None).draws), "and its draws are those of a number"
    before = Posterior(run.draws[: count - 4], {})
    assert max(standard_errors(before).rms()) > 0.015
    record = run.record["auto"]
    assert (record["tolerance"], record["minimum"], record["maximum"]) == (0.015, 19, 256)
    assert (record["draws"], record["reached"], record["more_to_halve"]) == (count, True, 3 * count)
    assert (record["mean_error"], record["std_error"]) == pytest.approx(standard_errors(run).rms(), rel=1e-5)
    assert run.record["draws"] == count
    assert not run.record["interrupted"]


def test_memory_that_draws_did_not_need_is_given_back(run):
    assert run.draws.untyped_storage().nbytes() == run.draws.nbytes


def test_a_tighter_tolerance_needs_more_and_a_looser_one_the_minimum(run):
    assert len(_run(tolerance=0.01)) > 1.7 * len(run)
    assert len(_run(tolerance=1.0)) == 20
    assert len(_run(tolerance=1.0, min_draws=30, max_draws=31)) == 31
    with pytest.warns(
        UserWarning, match=r"error is 0\.0\d+ after 10 draws, the most .* is 0\.001: about \d+ more draws"
    ):
        few = _run(tolerance=0.001, max_draws=10)
    assert (len(few), few.record["auto"]["reached"]) == (10, False)


def test_a_folder_gives_the_same_draws_and_says_so_when_loaded(run, tmp_path):
    stored = _run(store=tmp_path / "run")
    assert torch.equal(stored.draws, run.draws)
    assert stored.record["auto"] == run.record["auto"]
    loaded = Posterior.load(tmp_path / "run")
    assert loaded.record["auto"] == run.record["auto"]
    assert (len(loaded), loaded.record["interrupted"]) == (len(run), False)
    again = _run(store=tmp_path / "run")
    assert (again.record["auto"], len(again)) == (run.record["auto"], len(run))
    assert "auto" not in _run(draws=len(run), tolerance=None, store=tmp_path / "run").record
    more = _run(draws=len(run) + 8, tolerance=None, store=tmp_path / "run")
    assert torch.equal(more.draws[: len(run)], run.draws)
    assert "auto" not in Posterior.load(tmp_path / "run").record, "it was said of other draws"
    assert len(Posterior.load(tmp_path / "run")) == len(more)
    assert torch.equal(_run(store=tmp_path / "run").draws, run.draws), "what else is there does not count"
    assert torch.equal(Posterior.load(tmp_path / "run").draws, run.draws), "nor where it is loaded"


def test_what_is_loaded_is_the_last_run_that_came_to_an_end(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    _run(store=folder)
    fewer = _run(store=folder, tolerance=0.02)
    assert len(fewer) < len(run)
    loaded = Posterior.load(folder)
    assert torch.equal(loaded.draws, fewer.draws)
    assert (loaded.record["auto"], loaded.record["interrupted"]) == (fewer.record["auto"], False)
    torch.testing.assert_close(loaded.mean(), fewer.mean())
    # A number of draws that lies within is no further word on it, one beyond is.
    _run(store=folder, draws=len(fewer) - 1, tolerance=None)
    assert len(Posterior.load(folder)) == len(fewer)
    _run(store=folder, draws=len(fewer) + 1, tolerance=None)
    assert len(Posterior.load(folder)) == len(run)
    # One that was stopped gives what is there.
    _run(store=folder, tolerance=0.02)
    outcomes = running._outcomes

    def stopped(*args):
        for outcome in outcomes(*args):
            raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(running, "_outcomes", stopped)
    with pytest.warns(UserWarning, match="run it again to go on"):
        _run(store=folder, tolerance=0.001, max_draws=len(run) + 40)
    loaded = Posterior.load(folder)
    assert "auto" not in loaded.record
    assert len(loaded) >= len(run)


def test_after_a_stop_it_goes_on_to_the_same_number(run, tmp_path, monkeypatch):
    outcomes = running._outcomes

    def stopped(*args):
        for number, outcome in enumerate(outcomes(*args)):
            if Stored(tmp_path / "run").finished >= 12 and number == 0:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(running, "_outcomes", stopped)
    with pytest.warns(UserWarning, match="Interrupted: 12 draws are finished and kept in .*run it again to go on"):
        part = _run(store=tmp_path / "run")
    assert (len(part), part.record["interrupted"], part.record["auto"]["reached"]) == (12, True, False)
    assert torch.equal(part.draws, run.draws[:12])
    monkeypatch.undo()
    whole = _run(store=tmp_path / "run")
    assert torch.equal(whole.draws, run.draws)
    assert whole.record["auto"] == run.record["auto"]
    _run(store=tmp_path / "other")
    for file in ("zarr.json", "posterior/x/zarr.json"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_ctrl_c_without_a_folder_keeps_what_is_finished(run, monkeypatch):
    outcomes = running._outcomes

    def stopped(*args):
        for number, outcome in enumerate(outcomes(*args)):
            if number == 2:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(running, "_outcomes", stopped)
    with pytest.warns(UserWarning, match="Interrupted: 8 draws are finished and kept"):
        part = _run()
    assert torch.equal(part.draws, run.draws[:8])
    assert part.record["auto"]["reached"] is False


def test_the_worst_of_several_measurements_decides():
    noise = torch.randn(200, 2, 30, generator=torch.Generator().manual_seed(0))
    alone, both = (Watch(Auto(tolerance=0.012, minimum=3), 4) for _ in range(2))
    worst = 0.1 * noise[:, 1:]
    assert both.add(torch.cat([0.02 * noise[:, :1], worst], 1)) == alone.add(worst)
    assert both.count > 40


def test_several_measurements_give_the_same_with_a_folder(tmp_path):
    y = torch.stack([torch.full(SHAPE, 0.4), torch.full(SHAPE, 0.6), torch.full(SHAPE, 0.5)])
    likelihood = Likelihood(y, Identity(SHAPE), GaussianNoise(0.1))
    # Two of three measurements to a micro-batch.
    held = _run(likelihood=likelihood, micro_batch=2, tolerance=0.02)
    stored = _run(likelihood=likelihood, micro_batch=2, tolerance=0.02, store=tmp_path / "run")
    assert torch.equal(held.draws, stored.draws)
    assert held.record["auto"] == stored.record["auto"]
    assert max(standard_errors(held).rms(batched=True)) <= 0.02


def test_clouds_of_dependent_draws_grow_by_whole_clouds():
    solver = KPSCloud(steps=4, particles=4, keep="cloud")
    cloudy = _run(solver=solver, micro_batch=2, tolerance=0.03)
    assert len(cloudy) % 8 == 0
    assert cloudy.dependent
    errors = standard_errors(cloudy).rms()
    assert max(errors) <= 0.03
    auto = cloudy.record["auto"]
    assert (auto["mean_error"], auto["std_error"]) == pytest.approx(errors, rel=1e-5)


class _Hiding(Prior):
    """Keeps what may decide about a draw, or just counts, where a description does not look."""

    name = "hiding"

    def __init__(self) -> None:
        self._calls = 0

    def denoise(self, x, sigma):
        self._calls += 1
        return PRIOR.denoise(x, sigma)


def test_a_prior_that_no_settings_tell_is_compared_once(tmp_path):
    prior = _Hiding()

    def run(tolerance: float) -> tuple[Posterior, int]:
        before = prior._calls
        found = _run(prior=prior, store=tmp_path / "run", tolerance=tolerance, min_draws=4)
        return found, (prior._calls - before) // found.record["nfe"]

    first, computed = run(0.03)
    assert computed == len(first) // 4
    second, computed = run(0.01)
    assert torch.equal(second.draws[: len(first)], first.draws)
    assert computed == (len(second) - len(first)) // 4 + 1
    assert computed > 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"draws": "many"}, "draws is 'many': expected a whole number from 1 on, or 'auto'"),
        ({"draws": 4}, "tolerance is given with draws=4: it belongs to draws='auto'"),
        ({"draws": 4, "tolerance": None, "max_draws": 9}, "max_draws is given with draws=4"),
        ({"tolerance": 0}, "tolerance is 0: expected a positive number of image units"),
        ({"tolerance": float("nan")}, "tolerance is nan: expected a positive number"),
        ({"min_draws": 2}, "min_draws is 2: expected a whole number from 3 on"),
        ({"min_draws": 9, "max_draws": 8}, "max_draws is 8: expected a whole number from 9 on"),
        ({"solver": PnPPGD(), "tolerance": None}, "PnPPGD gives one point estimate: ask for draws=1, not auto"),
    ],
)
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        _run(**change)


def test_the_minimum_and_the_maximum_follow_each_other():
    assert [Auto(maximum=64).stops(16), list(Auto(minimum=20, maximum=50).stops(16))][1] == [32, 48, 50]
    assert list(Auto(minimum=3, maximum=9).stops(16)) == [9]


def test_restore_takes_it_and_says_what_was_reached():
    image = np.random.default_rng(0).random((12, 12)).astype(np.float32)
    options = {"sigma": 0.1, "prior": "tv", "solver": "ddrm", "solver_options": {"steps": 2}, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = restore(image, draws="auto", tolerance=0.02, min_draws=4, max_draws=64, **options)
    errors = result.metrics["monte_carlo"]
    assert max(errors["mean_error"], errors["std_error"]) <= 0.02
    assert errors["more_to_halve"] == 3 * len(result.posterior)
    assert result.posterior.record["auto"]["reached"]
    point = restore(image, draws="auto", sigma=0.1, prior="tv", solver="pnp_admm", progress=False)
    assert point.posterior.point
    with pytest.raises(ValueError, match="tolerance is given with draws=16"):
        restore(image, tolerance=0.1, **options)


def test_workers_stop_at_the_same_number_and_may_leave_more_behind(run, tmp_path):
    pytest.importorskip("distributed")
    from invdiff.distributed import Dask

    rounds = []

    class Here(Dask):
        """Workers without processes: the last micro-batch first."""

        def run(self, ensemble, store, todo, bar) -> None:
            rounds.append(len(todo))
            for block in reversed(todo):
                store.write(ensemble, block, ensemble.run(block))

    shared = _run(store=tmp_path / "run", engine=Here(workers=1, threads=torch.get_num_threads()))
    assert torch.equal(shared.draws, run.draws)
    assert shared.record["auto"] == run.record["auto"]
    assert Stored(tmp_path / "run").finished >= len(run)
    assert rounds[0] == 5, "up to the minimum at once"
    assert len(rounds) <= 3, "and then to what the errors foretell"


def test_the_bar_says_how_near_it_is(monkeypatch):
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, words: said.append((self.done, words)))
    found = _run()
    assert said[0][1].endswith(" of 0.015")
    errors = [float(words.split()[1]) for _, words in said]
    assert min(errors[:-1]) >= 0.015 >= errors[-1]
    assert len(said) == (len(found) - 16) // 4, "from the minimum on, after every micro-batch"
