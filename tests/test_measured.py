"""Measured or conjured: the maps against closed forms, what they mean, and what they refuse."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, sample
from invdiff.exact.gaussian import Conditioning
from invdiff.measured import MeasuredOrConjured, measured_or_conjured
from invdiff.measured_part import MeasuredPart
from invdiff.measured_plots import invented_overlay, overlay
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Identity, Mask, Spectral, box_mask, gaussian_psf, random_mask
from invdiff.posterior import POINT
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM

F64 = torch.float64
SHAPE = (1, 8, 8)
OPERATORS = {
    "inpaint": Mask(random_mask(SHAPE, 0.5), SHAPE),
    "box": Mask(box_mask(SHAPE), SHAPE),
    "blur": Blur(gaussian_psf(0.8, 5), SHAPE),
    "down": Downsample(2, SHAPE, "bicubic"),
    "denoise": Identity(SHAPE),
    "reflect": Blur(gaussian_psf(0.8, 5), SHAPE, boundary="reflect"),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def likelihood_of(operator: object, sigma: float = 0.05) -> Likelihood:
    shape = operator.out_shape  # type: ignore[attr-defined]
    return Likelihood(torch.full(shape, 0.5, dtype=F64), operator, GaussianNoise(sigma))  # type: ignore[arg-type]


def matrix_of(function: object, n: int) -> Tensor:
    eye = torch.eye(n, dtype=F64).reshape(n, *SHAPE)
    return function(eye).reshape(n, n).T  # type: ignore[operator]


@pytest.mark.parametrize("name", OPERATORS)
def test_closed_form_of_gaussian_posteriors(name: str) -> None:
    """Draws whose mean and covariance are exactly those of the posterior give exactly the traces of the formulas."""
    operator, sigma, n = OPERATORS[name], 0.05, 64
    prior = GaussianPrior.power_law(SHAPE)
    # Without an SVD exactness takes long.
    tol, off = (1e-8, 1e-5) if isinstance(operator, Spectral) else (1e-3, 1e-2)
    shared = Conditioning(prior, operator, sigma)
    truth = prior.sample(1, seed=3)
    posterior = shared.given(operator(truth)[0])
    # mean +- sqrt(n) times the columns of a root: 2 n draws whose second moments are exact.
    values, vectors = torch.linalg.eigh(shared.covariance)
    root = (n * values.clamp_min(0)).sqrt() * vectors
    steps = torch.cat([root, -root], 1).T.reshape(-1, *SHAPE)
    draws = posterior.mean + steps
    split = measured_or_conjured(Posterior(draws, {}), likelihood_of(operator, sigma), prior, tol=tol)

    w = matrix_of(MeasuredPart(likelihood_of(operator, sigma), prior, tol=tol), n)
    s = shared.covariance
    share = 1 - (w @ s).diagonal() / s.diagonal()
    # No value needs to be held in [0, 1].
    assert float(share.min()) > -1e-6
    assert float(share.max()) < 1 + 1e-6
    torch.testing.assert_close(split.invented_variance.flatten(), share, atol=off, rtol=0)
    assert split.record["whole"]["invented_variance"] == pytest.approx(float(1 - (w @ s).trace() / s.trace()), abs=off)

    smooth, window = (matrix_of(_blur(std), n) for std in (0.75, 2.0))
    high = torch.eye(n, dtype=F64) - smooth
    mean = high @ posterior.mean.flatten()
    moment = high @ s @ high.T + torch.outer(mean, mean)
    energy = window @ moment.diagonal()
    detail = 1 - (window @ (w @ moment).diagonal()) / energy
    torch.testing.assert_close(split.invented_detail.flatten(), detail.clamp(0, 1), atol=off, rtol=0)
    # Of K draws with the (1 / K) covariance s, pairs of different ones have mean^2 - s / (K - 1).
    pairs = mean**2 - (high @ s @ high.T).diagonal() / (2 * n - 1)
    torch.testing.assert_close(split.agreement.flatten(), (window @ pairs / energy).clamp(0, 1), atol=1e-8, rtol=0)


def _blur(std: float) -> Blur:
    side = min(gaussian_psf(std).shape[-1], 7)
    return Blur(gaussian_psf(std, side), SHAPE, boundary="reflect")  # type: ignore[return-value]


def test_exact_draws_come_near_the_closed_form() -> None:
    operator, prior = OPERATORS["inpaint"], GaussianPrior.power_law(SHAPE)
    shared = Conditioning(prior, operator, 0.05)
    draws = shared.given(operator(prior.sample(1, seed=3))[0]).sample(600, seed=1)
    split = measured_or_conjured(Posterior(draws.float(), {}), likelihood_of(operator), prior)
    w = matrix_of(MeasuredPart(likelihood_of(operator), prior), 64)
    share = 1 - (w @ shared.covariance).diagonal() / shared.covariance.diagonal()
    torch.testing.assert_close(split.invented_variance.flatten().double(), share, atol=0.05, rtol=0)
    assert split.invented_variance.dtype == torch.float32


def test_a_hidden_box_is_invented_and_what_is_seen_is_not() -> None:
    shape = (3, 16, 16)
    prior, operator = GaussianPrior.power_law(shape, std=0.2), Mask(box_mask(shape), shape)
    y = operator(prior.sample(1, seed=1))[0]
    draws = Conditioning(prior, operator, 0.005).given(y).sample(40, seed=2)
    split = measured_or_conjured(Posterior(draws, {}), likelihood_of(operator, 0.005))
    hidden = box_mask(shape) == 0
    assert float(split.invented_variance[hidden].min()) == 1.0
    assert float(split.invented_variance[~hidden].max()) < 0.2
    assert float(split.invented_detail[:, 7:9, 7:9].min()) > 0.85
    assert float(split.invented_detail[:, 0, 0].max()) < 0.1
    assert float(split.agreement[:, 7:9, 7:9].mean()) < 0.3 < 0.9 < float(split.agreement[:, 0, 0].mean())
    assert float(split.measured(draws)[:, hidden].abs().max()) == 0.0
    torch.testing.assert_close(split.measured(draws) + split.conjured(draws), draws)


def test_agreement_is_the_mean_over_all_pairs() -> None:
    draws = normal(4, *SHAPE) + 3 * normal(1, *SHAPE, seed=1)
    split = measured_or_conjured(Posterior(draws, {}), likelihood_of(Identity(SHAPE)), 0.2)
    e = draws - _blur(0.75)(draws)
    pairs = torch.stack([e[k] * e[j] for k in range(4) for j in range(4) if j != k]).mean(0)
    expected = _blur(2.0)(pairs[None]) / _blur(2.0)(e.square().mean(0)[None])
    torch.testing.assert_close(split.agreement, expected[0].clamp(0, 1))


def test_nothing_invented_where_draws_do_not_vary() -> None:
    constant = torch.full((5, *SHAPE), 0.3)
    split = measured_or_conjured(Posterior(constant, {}), likelihood_of(Identity(SHAPE)))
    assert bool((split.invented_variance == 0).all())
    assert bool((split.invented_detail == 0).all())
    assert bool((split.agreement == 1).all())
    assert split.record["whole"]["invented_variance"] == 0.0


def test_draws_of_a_folder_are_never_all_in_memory(tmp_path: Path) -> None:
    prior = GaussianPrior.power_law(SHAPE)
    likelihood = Likelihood(torch.full(SHAPE, 0.5), OPERATORS["inpaint"], GaussianNoise(0.05))
    settings = {"draws": 6, "seed": 0, "progress": False}
    held = sample(DDRM(steps=3), likelihood, prior, **settings)
    sample(DDRM(steps=3), likelihood, prior, store=tmp_path / "run.zarr", **settings)
    loaded = Posterior.load(tmp_path / "run.zarr")
    split = measured_or_conjured(loaded, likelihood, "draws")
    assert loaded._draws is None
    expected = measured_or_conjured(held, likelihood, "draws")
    torch.testing.assert_close(split.invented_variance, expected.invented_variance, atol=1e-5, rtol=0)
    torch.testing.assert_close(split.invented_detail, expected.invented_detail, atol=1e-5, rtol=0)


def test_measurements_apart_and_draws_that_failed() -> None:
    masks = torch.stack([random_mask(SHAPE, 0.5, seed=k) for k in range(2)])
    likelihood = Likelihood(torch.full((2, *SHAPE), 0.5), Mask(masks, SHAPE), GaussianNoise(0.05))
    draws = 0.5 + 0.1 * normal(5, 2, *SHAPE)
    draws[1, 0] = torch.nan
    draws[3] = torch.nan
    failed = [{"draw": 1, "measurement": 0}, {"draw": 3, "measurement": 0}, {"draw": 3, "measurement": 1}]
    record = {"failed": failed, "measurements": 2, "batched": True, "draws": 5}
    split = measured_or_conjured(Posterior(draws, record), likelihood, tol=1e-9)
    assert split.record["draws"] == 4
    for k, kept in enumerate(([0, 2, 4], [0, 1, 2, 4])):
        alone = Likelihood(torch.full(SHAPE, 0.5), Mask(masks[k], SHAPE), GaussianNoise(0.05))
        one = measured_or_conjured(Posterior(draws[kept, k], {}), alone, tol=1e-9)
        for name in ("invented_variance", "invented_detail", "agreement"):
            torch.testing.assert_close(getattr(split, name)[k], getattr(one, name), atol=1e-7, rtol=0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    split = measured_or_conjured(Posterior(normal(4, *SHAPE), {}), likelihood_of(Identity(SHAPE)))
    split.save(tmp_path / "split.npz")
    loaded = MeasuredOrConjured.load(tmp_path / "split.npz")
    for name in ("invented_variance", "invented_detail", "agreement"):
        assert torch.equal(getattr(loaded, name), getattr(split, name))
    assert loaded.record == split.record
    assert loaded.record["prior_std"]["kind"] == "photographs"
    with pytest.raises(ValueError, match=r"W x is MeasuredPart\(likelihood, prior_std\)"):
        loaded.measured(torch.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"split.png does not end in .npz"):
        split.save(tmp_path / "split.png")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        split.save(tmp_path / "absent" / "split.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(
        ValueError, match=r"other.npz is no saved split \(it holds a\): expected a file written by save"
    ):
        MeasuredOrConjured.load(tmp_path / "other.npz")


def test_files_that_are_no_splits_are_refused_and_none_is_half_written(tmp_path: Path, monkeypatch) -> None:
    split = measured_or_conjured(Posterior(normal(4, *SHAPE), {}), likelihood_of(Identity(SHAPE)))
    path = tmp_path / "split.npz"
    split.save(path)
    kept = path.read_bytes()

    def full(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            split.save(path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]
    np.save(tmp_path / "array.npy", np.zeros(2))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes(kept[:200])
    (tmp_path / "damaged.npz").write_bytes(kept[:300] + bytes(200) + kept[500:])
    for name in ("array.npy", "text.npz", "cut.npz", "damaged.npz"):
        with pytest.raises(ValueError, match=rf"{name} is no saved split \(.*: expected a file written by save"):
            MeasuredOrConjured.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.npz is not there: expected a file written by save"):
        MeasuredOrConjured.load(tmp_path / "none.npz")


def test_another_mask_than_that_of_the_draws_is_refused_and_what_is_printed_is_short() -> None:
    prior, likelihood = GaussianPrior.power_law(SHAPE), likelihood_of(Mask(box_mask(SHAPE), SHAPE))
    posterior = sample(DDRM(steps=2), likelihood, prior, draws=2, progress=False)
    assert "tensor(" not in repr(measured_or_conjured(posterior, likelihood))
    with pytest.raises(ValueError, match="The operator given is not the one that the draws are of: its mask is"):
        measured_or_conjured(posterior, likelihood_of(Mask(random_mask(SHAPE, 0.5), SHAPE)))


def test_refusals() -> None:
    likelihood = likelihood_of(Identity(SHAPE))
    with pytest.raises(ValueError, match="A point estimate has no draws to compare"):
        measured_or_conjured(Posterior(normal(1, *SHAPE), {}, POINT), likelihood)
    with pytest.raises(ValueError, match="at least 2 draws: this posterior has 1"):
        measured_or_conjured(Posterior(normal(1, *SHAPE), {}), likelihood)
    with pytest.raises(ValueError, match="pass the likelihood that they were drawn with"):
        measured_or_conjured(Posterior(normal(3, 1, 8, 7), {}), likelihood)
    with pytest.raises(ValueError, match="MeasuredPart splits vectors"):
        measured_or_conjured(Posterior(normal(3, 5), {}), likelihood_of(Identity((5,))), 0.2)


def test_the_overlay_is_grey_where_measured_and_red_where_invented() -> None:
    mean, share = torch.full((3, 4, 6), 0.6), torch.zeros(3, 4, 6)
    share[..., 3:] = 1.0
    picture = overlay(mean, share)
    assert picture.shape == (4, 6, 3)
    assert np.array_equal(picture[:, :3], np.full((4, 3, 3), 153))
    red, green, blue = picture[0, 4].astype(int)
    assert red > green + 50
    assert red > blue + 50
    with pytest.raises(ValueError, match="pick one of several measurements"):
        overlay(mean, share[0])


def test_the_figure_says_what_it_shows() -> None:
    posterior = Posterior(0.5 + 0.1 * normal(4, *SHAPE), {})
    split = measured_or_conjured(posterior, likelihood_of(Identity(SHAPE)))
    figure = invented_overlay(posterior, split)
    picture, bar = figure.axes
    assert "fine detail that the prior invented" in picture.get_title()
    assert "4 draws, uncalibrated spread" in picture.get_title()
    labels = [text.get_text() for text in bar.get_yticklabels()]
    assert labels[0] == "0 % (measured)"
    assert labels[-1] == "100 % (invented)"
    np.testing.assert_array_equal(picture.images[0].get_array(), overlay(posterior.mean(), split.invented_detail))
    figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="share is 'agreement': expected one of"):
        invented_overlay(posterior, split, share="agreement")  # type: ignore[arg-type]
