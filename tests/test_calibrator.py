"""What a calibrated posterior says, how it is scaled, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import Likelihood, Posterior, plots, restore, sample
from invdiff.calibrator import Calibrator
from invdiff.conformal import calibrate
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity, Mask, random_mask
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM

SHAPE = (1, 4, 4)
CALIBRATOR = Calibrator("crc", 0.9, None, 1.5, 168, 0.094, 0.16)


def _posterior(draws: int = 20, record: dict | None = None, label: str = "uncalibrated spread") -> Posterior:
    values = torch.rand(draws, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Posterior(values, {"draws": draws} if record is None else record, label)


def _run(seed: int = 0, steps: int = 3, sigma: float = 0.1, draws: int = 19, mask: int = 0, **settings) -> Posterior:
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.04 * torch.eye(16))
    truth = prior.sample(1, seed=seed)[0]
    operator = Mask(random_mask(SHAPE, 0.5, seed=mask), SHAPE) if mask >= 0 else Identity(SHAPE)
    likelihood = Likelihood(operator(truth[None])[0], operator, GaussianNoise(sigma))
    return sample(DDRM(steps=steps), likelihood, prior, draws=draws, seed=seed, progress=False, **settings)


def _truth(seed: int) -> torch.Tensor:
    return GaussianPrior(torch.full(SHAPE, 0.5), 0.04 * torch.eye(16)).sample(1, seed=seed)[0]


def test_draws_are_moved_away_from_their_mean_and_all_statistics_with_them():
    posterior = _posterior()
    scaled = CALIBRATOR(posterior)
    mean = posterior.mean()
    expected = mean + 1.5 * (posterior.draws - mean)
    torch.testing.assert_close(scaled.draws, expected)
    plain = Posterior(expected, {})
    for found, wanted in (
        (scaled.mean(), posterior.mean()),
        (scaled.std(), plain.std()),
        (scaled.quantile(0.3), plain.quantile(0.3)),
        (torch.stack(scaled.interval(0.9)), torch.stack(plain.interval(0.9))),
        (torch.from_numpy(np.asarray(scaled)), expected),
        (torch.stack([draw for _, draw in scaled.each()]), expected),
    ):
        torch.testing.assert_close(found, wanted)
    assert (scaled.shape, len(scaled), scaled.usable) == ((20, *SHAPE), 20, 20)
    assert torch.equal(posterior.draws, _posterior().draws), "the posterior itself is left as it is"


def test_what_is_printed_leaves_the_settings_out():
    found = dataclasses.replace(CALIBRATOR, settings={"solver": {"name": "KPS"}}, sha256=("0" * 64,))
    assert repr(found) == repr(CALIBRATOR)
    assert "scale=1.5" in repr(found)


def test_label_and_record_say_what_is_promised_and_files_keep_it(tmp_path):
    scaled = CALIBRATOR(_posterior())
    assert scaled.label == "calibrated spread (crc, 90 %, 168 images)"
    note = scaled.record["calibration"]
    assert (note["method"], note["scale"], note["images"], note["before"]) == ("crc", 1.5, 168, "uncalibrated spread")
    assert "at most 10 % of its values lie outside their interval of level 90 %" in note["guarantee"]
    assert note["differences"] == []
    scaled.save(tmp_path / "posterior.safetensors")
    loaded = Posterior.load(tmp_path / "posterior.safetensors")
    assert (loaded.label, loaded.record["calibration"]) == (scaled.label, json.loads(json.dumps(note)))
    torch.testing.assert_close(loaded.draws, scaled.draws)
    scaled.export(tmp_path / "posterior.npz")
    with np.load(tmp_path / "posterior.npz") as exported:
        assert str(exported["label"]) == scaled.label
        assert json.loads(str(exported["record"]))["calibration"]["scale"] == 1.5
        np.testing.assert_array_equal(exported["draws"], np.asarray(scaled))
    rcps = dataclasses.replace(CALIBRATOR, method="rcps", delta=0.1)(_posterior())
    assert rcps.label == "calibrated spread (rcps, 90 %, delta 0.1, 168 images)"
    assert "with probability 90 % over the 168 images" in rcps.record["calibration"]["guarantee"]


def test_maps_say_calibrated_or_uncalibrated_wherever_they_are_shown():
    title = plots.uncertainty_map(_posterior()).axes[0].get_title()
    assert "uncalibrated spread" in title
    title = plots.uncertainty_map(CALIBRATOR(_posterior())).axes[0].get_title()
    assert "calibrated spread (crc, 90 %, 168 images)" in title
    assert "uncalibrated" not in title
    image = np.random.default_rng(0).random((16, 16))
    result = restore(image, sigma=0.1, prior="tv", solver="ddrm", draws=2, progress=False, solver_options={"steps": 2})
    assert result.metrics["label"] in ("uncalibrated spread", "heuristic spread")


def test_draws_of_a_folder_are_scaled_as_they_are_read(tmp_path):
    posterior = _run(store=tmp_path / "run.zarr", micro_batch=4)
    scaled = CALIBRATOR(posterior)
    parts = list(scaled.blocks())
    assert [len(part) for part in parts] == [4, 4, 4, 4, 3]
    std, (low, high) = scaled.std(), scaled.interval(0.9)
    assert scaled._draws is None, "no statistic keeps the draws"
    assert posterior._draws is None
    plain = Posterior(torch.cat(parts), {})
    torch.testing.assert_close(std, plain.std())
    torch.testing.assert_close((low, high), plain.interval(0.9))
    assert "store" not in scaled.record, "the folder holds the draws as they were sampled"


def test_failed_and_dependent_draws_stay_so():
    values = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    values[3] = torch.nan
    record = {"failed": [{"draw": 3, "measurement": 0, "step": 1}], "measurements": 1, "draws": 20}
    scaled = CALIBRATOR(Posterior(values, record, "uncalibrated spread of dependent draws"))
    assert scaled.usable == 19
    assert bool(torch.isfinite(scaled.std()).all())
    assert [number for number, _ in scaled.each()] == [k for k in range(20) if k != 3]
    assert scaled.label == "calibrated spread (crc, 90 %, 168 images) of dependent draws"
    assert scaled.dependent


def test_a_calibrator_comes_back_from_its_file(tmp_path):
    posteriors, truths = [_run(seed) for seed in range(9)], [_truth(seed) for seed in range(9)]
    calibrator = calibrate(posteriors, truths)
    calibrator.save(tmp_path / "calibrator.json")
    assert Calibrator.load(tmp_path / "calibrator.json") == calibrator
    content = json.loads((tmp_path / "calibrator.json").read_text())
    assert content["settings"]["solver"]["steps"] == 3
    assert content["guarantee"].startswith("On a new image of the same kind, on average at most 10 %")
    assert len(content["sha256"]) == 9


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "calibrator.json is no calibrator: expected a file of invdiff calibrate"),
        ('{"scale": 1}', "calibrator.json is no calibrator"),
        ('{"written_by": "invdiff calibrator", "format": 9}', "has the format 9, and this invdiff reads 1"),
        ('{"written_by": "invdiff calibrator", "format": 1}', "calibrator.json is damaged"),
        ({"scale": -1.0}, r"calibrator.json is damaged \(the scale is -1.0, of 168 images\)"),
        ({"images": 0}, r"calibrator.json is damaged \(the scale is 1.5, of 0 images\)"),
        ({"settings": ["solver"]}, r"calibrator.json is damaged \(the settings are \['solver'\]\)"),
        ({"scale": "1"}, "calibrator.json is damaged"),
        ({"method": "other"}, r"calibrator.json is damaged \(method is 'other'"),
    ],
)
def test_files_that_are_no_calibrators_are_refused(tmp_path, content, words):
    path = tmp_path / "calibrator.json"
    CALIBRATOR.save(path)
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(ValueError, match=words):
        Calibrator.load(path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "calibrator.json"
    CALIBRATOR.save(path)

    def full(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        dataclasses.replace(CALIBRATOR, scale=2.0).save(path)
    assert Calibrator.load(path) == CALIBRATOR
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json is not there: expected a file of invdiff calibrate"):
        Calibrator.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .* to save c\.json in: make it first"):
        CALIBRATOR.save(tmp_path / "none" / "c.json")


@pytest.fixture(scope="module")
def calibrator() -> Calibrator:
    return calibrate([_run(seed, mask=seed) for seed in range(9)], [_truth(seed) for seed in range(9)])


def test_what_varied_between_the_images_is_not_asked_for(calibrator):
    assert calibrator(_run(99, mask=99)).label.startswith("calibrated spread (crc, 90 %, 9 images)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 4}, "solver.steps 3 there and 4 here"),
        ({"sigma": 0.2}, "noise.sigma 0.1 there and 0.2 here"),
        ({"draws": 24}, "draws 19 there and 24 here"),
        ({"mask": -1}, 'operator.name "Mask" there and "Identity" here'),
    ],
)
def test_other_settings_are_refused_or_said(calibrator, change, words):
    other = _run(**change)
    with pytest.raises(ValueError, match=rf"The calibration is of other settings \({words}.*give anyway=True"):
        calibrator(other)
    scaled = calibrator(other, anyway=True)
    name = words.split()[0]
    assert scaled.label.startswith(f"spread calibrated for other settings (crc, 90 %, 9 images; other {name}")
    note = scaled.record["calibration"]
    assert note["guarantee"] is None
    assert note["differences"][0]["setting"] == name


def test_a_prior_that_is_compiled_or_laid_out_otherwise_is_the_same(calibrator, tmp_path):
    def run(seed: int, compiled: bool) -> Posterior:
        posterior = _run(seed)
        prior = {"name": "Tiled", "of": posterior.record["prior"] | {"compiled": compiled, "layout": f"{compiled}"}}
        return Posterior(posterior.draws, posterior.record | {"prior": prior})

    runs = [run(seed, compiled=seed < 4) for seed in range(9)]
    found = calibrate(runs, [_truth(seed) for seed in range(9)])
    assert found.scale == calibrator.scale
    assert found(run(20, compiled=False)).label.startswith("calibrated spread")
    earlier = dataclasses.replace(found, settings=found.settings | {"prior": run(0, compiled=True).record["prior"]})
    earlier.save(tmp_path / "earlier.json")
    assert Calibrator.load(tmp_path / "earlier.json")(run(20, compiled=False)).label.startswith("calibrated spread")


def test_a_calibration_is_of_one_kind():
    runs = [_run(seed) for seed in range(8)]
    for change, words in (({"steps": 4}, "solver.steps 3 there and 4 here"), ({"mask": -1}, "operator")):
        with pytest.raises(ValueError, match=rf"Posterior 8 was made with other settings than those before \({words}"):
            calibrate([*runs, _run(8, **change)], [_truth(seed) for seed in range(9)])


def test_a_restoration_is_recalibrated_and_what_was_sampled_stays():
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    prior = GaussianPrior(torch.full((1, 8, 8), 0.5), 0.04 * torch.eye(64))
    result = restore(image, sigma=0.1, prior=prior, solver="ddrm", draws=4, simulate=True, progress=False)
    scaled = result.recalibrated(CALIBRATOR)
    np.testing.assert_allclose(scaled.std, 1.5 * result.std, rtol=1e-5)
    assert np.array_equal(scaled.restored, result.restored)
    assert scaled.posterior.label == scaled.metrics["label"] == CALIBRATOR.label
    for name in ("mean_std", "spread_ratio"):
        assert scaled.metrics[name] == pytest.approx(1.5 * result.metrics[name])
    assert scaled.metrics["chi2"] == result.metrics["chi2"]
    assert result.metrics["label"] == result.posterior.label == "uncalibrated spread"
    with pytest.raises(ValueError, match=r"this is calibrated spread .* already"):
        scaled.recalibrated(CALIBRATOR)
    single = restore(image, sigma=0.1, prior=prior, solver="ddrm", draws=1, progress=False)
    with pytest.raises(ValueError, match="A spread needs at least 2 draws: this result has 1; ask for more"):
        single.recalibrated(CALIBRATOR)


def test_what_has_no_spread_to_scale_is_refused():
    with pytest.raises(ValueError, match="a point estimate has no spread to calibrate"):
        CALIBRATOR(_posterior(1, label="point estimate"))
    with pytest.raises(TypeError, match=r"expected a Posterior, as sample.* gives, not Tensor"):
        CALIBRATOR(torch.zeros(3))
    with pytest.raises(ValueError, match=r"this is calibrated spread .* already; give the posterior as it was sampled"):
        CALIBRATOR(CALIBRATOR(_posterior()))
