"""`restore` on arrays: layouts, ranges, operators of every kind, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data as pictures

from invdiff import priors
from invdiff.choices import check_sigma, pick_device
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Identity, Mask, from_function
from invdiff.operators.psf import gaussian_psf
from invdiff.options import build_operator, make_psf, names, parse_psf
from invdiff.restoration import Restoration, restore, simulate_measurement
from invdiff.solvers import DDRM, PnPADMM

FAST = {"prior": "gaussian", "solver_options": {"steps": 4}, "draws": 2, "progress": False}
POINT = {"prior": "tv", "solver": "pnp_admm", "solver_options": {"iterations": 5}, "progress": False}


def _astronaut(size: int = 32) -> np.ndarray:
    return np.ascontiguousarray(pictures.astronaut()[60 : 60 + 2 * size : 2, 180 : 180 + 2 * size : 2])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["gray", "gray axis", "colour"])
def test_results_come_in_the_layout_and_range_of_the_input(dtype: str, layout: str) -> None:
    clean = _astronaut(16)
    image = {"gray": clean[..., 1], "gray axis": clean[..., 1:2], "colour": clean}[layout]
    scale = {"uint8": 1, "uint16": 257}.get(dtype, 1 / 255)
    image = (image.astype(float) * scale).astype(dtype)
    kept = image.copy()
    result = restore(image, "denoise", sigma=0.02, **FAST)
    assert result.restored.dtype == image.dtype
    assert result.restored.shape == image.shape
    assert result.draws.shape == (2, *image.shape)
    assert result.std is not None
    assert result.std.shape == image.shape
    assert result.std.dtype == np.float32
    top = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    assert np.abs(result.restored.astype(float) - image).mean() < 0.1 * top
    np.testing.assert_array_equal(image, kept)
    in_range = result.posterior.draws.mean(0).numpy() * top
    expected = in_range[0] if layout == "gray" else np.moveaxis(in_range, 0, -1)
    rounding = 0.51 if top > 1 else 1e-5
    assert (
        np.abs(result.restored.astype(float) - expected.clip(0, top) if top > 1 else result.restored - expected).max()
        <= rounding
    )
    np.testing.assert_allclose(
        result.std, _last(result.posterior.std().numpy() * top, layout), rtol=1e-4, atol=1e-5 * top
    )


def _last(array: np.ndarray, layout: str) -> np.ndarray:
    return array[0] if layout == "gray" else np.moveaxis(array, 0, -1)


def test_the_data_range_is_stated_for_other_ranges() -> None:
    image = _astronaut(16).astype(np.float32)
    result = restore(image, "denoise", sigma=0.02, data_range=255, **FAST)
    same = restore(image / 255, "denoise", sigma=0.02, **FAST)
    np.testing.assert_allclose(result.restored / 255, same.restored, atol=1e-5)


@pytest.mark.parametrize("name", [*names(), "identity"])
def test_every_operator_by_name_simulates_and_restores(name: str) -> None:
    blur = {"psf_kind": "gaussian:1", "boundary": "circular"}
    options = {"blur": blur, "downsample": {"factor": 2}}.get(name, {})
    clean = _astronaut()
    result = restore(clean, name, sigma=0.02, simulate=True, operator_options=options, **FAST)
    assert result.restored.shape == clean.shape
    assert result.truth is not None
    metrics = result.metrics
    assert metrics["psnr"] > 10
    assert 0 < metrics["ssim"] < 1
    assert ("psnr_measurement" in metrics) == (name not in ("downsample", "gray"))
    # The measurement given back on its own is restored to the same image.
    y = np.moveaxis(result.measurement.numpy(), 0, -1)
    again = restore(y, name, sigma=0.02, operator_options=options, **FAST)
    np.testing.assert_allclose(again.posterior.draws, result.posterior.draws, atol=1e-5)
    assert "psnr" not in again.metrics
    with_truth = restore(y, name, sigma=0.02, operator_options=options, truth=clean, **FAST)
    assert with_truth.metrics["psnr"] == pytest.approx(metrics["psnr"], abs=1e-3)


def test_valid_blur_restores_the_border_that_was_lost() -> None:
    options = {"psf_kind": "uniform:5", "boundary": "valid"}
    result = restore(_astronaut(), "blur", sigma=0.02, simulate=True, operator_options=options, **POINT)
    assert result.measurement.shape == (3, 28, 28)
    y = np.moveaxis(result.measurement.numpy(), 0, -1)
    assert restore(y, "blur", sigma=0.02, operator_options=options, **POINT).restored.shape == (32, 32, 3)


def test_a_raw_bayer_image_is_one_channel() -> None:
    clean = _astronaut()
    simulated = restore(clean, "bayer", sigma=0.02, simulate=True, **POINT)
    raw = simulated.measurement.sum(0).numpy()
    result = restore(raw, "bayer", sigma=0.02, **POINT)
    assert result.restored.shape == clean.shape
    torch.testing.assert_close(result.measurement, simulated.measurement)


@pytest.mark.parametrize("form", ["operator", "function", "class"])
def test_operators_as_objects_and_functions(form: str) -> None:
    image = _astronaut(16)
    operator = {
        "operator": Blur(gaussian_psf(1.0), (3, 16, 16)),
        "function": lambda shape: Blur(gaussian_psf(1.0), shape),
        "class": Identity,
    }[form]
    result = restore(image, operator, sigma=0.05, **POINT)
    assert result.restored.shape == image.shape
    if form != "class":
        options = {"psf": gaussian_psf(1.0), "boundary": "circular"}
        named = restore(image, "blur", sigma=0.05, operator_options=options, **POINT)
        np.testing.assert_array_equal(result.restored, named.restored)


def test_a_measurement_that_is_no_image() -> None:
    operator = from_function(lambda x: x.flatten(1)[:, ::2], (1, 12, 12))
    truth = _astronaut(6)[::1, ::1, 0]
    clean = np.kron(truth, np.ones((2, 2)))
    y = (clean.flatten() / 255)[::2].astype(np.float32)
    result = restore(y, operator, sigma=0.05, prior="tv", solver="pnp_admm", progress=False)
    assert result.restored.shape == (12, 12)
    assert np.corrcoef(result.restored.flatten(), clean.flatten())[0, 1] > 0.8


def test_point_estimates_have_no_spread_and_no_verdict() -> None:
    result = restore(_astronaut(16), "denoise", sigma=0.1, simulate=True, **POINT)
    assert result.std is None
    assert len(result.posterior) == 1
    assert result.draws.shape == (1, 16, 16, 3)
    assert result.metrics["label"] == "point estimate"
    assert result.metrics["chi2"]["verdict"] == ""
    assert result.metrics["chi2"]["value"] > 0
    assert "mean_std" not in result.metrics
    assert result.metrics["psnr"] > result.metrics["psnr_measurement"]


def test_solver_and_prior_objects_are_used_as_they_are() -> None:
    image = _astronaut(16)
    by_name = restore(image, sigma=0.1, **POINT)
    by_object = restore(image, sigma=0.1, prior=priors.load("tv"), solver=PnPADMM(iterations=5), progress=False)
    np.testing.assert_array_equal(by_name.restored, by_object.restored)
    plain = restore(image, sigma=0.1, prior=lambda x, sigma: x, solver=DDRM(steps=2), draws=1, progress=False)
    assert plain.std is None  # one draw has no spread


def test_seeds_and_simulated_noise() -> None:
    image = _astronaut(16)
    runs = [restore(image, "denoise", sigma=0.1, simulate=True, seed=s, **FAST) for s in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].draws, runs[1].draws)
    assert not np.array_equal(runs[0].draws, runs[2].draws)
    assert not torch.equal(runs[0].measurement, runs[2].measurement)
    x = torch.full((1, 64, 64), 0.5)
    y = simulate_measurement(x, Identity(x.shape), 0.1, seed=0)
    assert (y - x).std().item() == pytest.approx(0.1, rel=0.05)
    half = Mask(torch.arange(64.0).lt(32).float(), x.shape)
    y = simulate_measurement(x, half, 0.1, seed=0)
    assert (y[..., 32:] == 0).all()  # nothing is measured there, not even noise
    assert (y[..., :32] - 0.5).std().item() == pytest.approx(0.1, rel=0.06)


def test_sigma_auto_is_reported_as_an_estimate() -> None:
    smooth = np.add.outer(np.linspace(0, 0.5, 64), np.linspace(0, 0.4, 64))
    noisy = smooth + 0.05 * np.random.default_rng(0).standard_normal(smooth.shape)
    result = restore(noisy, "denoise", sigma="auto", **POINT)
    assert result.sigma_estimated
    assert result.metrics["sigma_estimated"]
    assert result.sigma == pytest.approx(0.05, rel=0.1)


def test_gray_images_run_through_colour_priors_and_the_reverse() -> None:
    class Coloured(priors.Prior):
        name, channels = "coloured", 3

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            assert x.shape[1] == 3
            return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    gray = _astronaut(16)[..., 0]
    assert restore(gray, sigma=0.05, prior=Coloured(), draws=2, progress=False).restored.shape == gray.shape


def test_the_record_says_what_ran() -> None:
    result = restore(_astronaut(16), sigma=0.05, seed=3, **FAST)
    record = result.posterior.record
    assert isinstance(result, Restoration)
    assert record["seed"] == 3
    assert record["draws"] == 2
    assert (record["solver"]["name"], record["solver"]["steps"], record["solver"]["products"]) == ("KPS", 4, 3)
    assert record["nfe"] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": "much"}, "expected a number"),
        ({"sigma": 25}, r"divide by 255 \(0.09804\)"),
        ({"sigma": "auto", "simulate": True}, "state the noise level"),
        ({"operator": "blurr"}, "did you mean 'blur'"),
        ({"operator": "blur"}, "needs a PSF"),
        ({"operator": "blur", "operator_options": {"psf": np.zeros((3, 3))}}, "positive sum"),
        ({"operator": "blur", "operator_options": {"psf": np.ones((40, 3))}}, "larger than the image"),
        ({"operator": "blur", "operator_options": {"psf_kind": "gausian:1"}}, "did you mean 'gaussian'"),
        ({"operator": "blur", "operator_options": {"psf_kind": "disk"}}, "numbers after the colon"),
        ({"operator": "blur", "operator_options": {"factor": 4}}, "has no option 'factor'"),
        ({"operator": "downsample", "operator_options": {"factor": 3}, "simulate": True}, "3"),
        ({"operator": "downsample", "operator_options": {"factor": 0}}, "factor is 0"),
        ({"operator": "downsample", "operator_options": {"kind": "psf"}}, "without a PSF"),
        ({"operator": "mask", "operator_options": {"keep": 1.5}}, "1.5"),
        ({"operator": "mask", "operator_options": {"mask": np.zeros((16, 16))}}, "nothing is measured"),
        ({"operator": "mask", "operator_options": {"mask_kind": "ring"}}, "no mask 'ring'"),
        ({"operator": "mask", "operator_options": {"mask_kind": "box", "keep": 0.2}}, "only the random mask"),
        ({"operator": "mask", "sigma": "auto"}, "without missing values"),
        ({"operator": "gray"}, "measures one"),
        ({"operator": Identity((1, 16, 16))}, r"operator measures \(1, 16, 16\)"),
        ({"operator": Identity((16,))}, "images"),
        ({"operator": Mask(torch.ones(2, 1, 16, 16), (3, 16, 16))}, "2 members"),
        ({"operator": Identity, "operator_options": {"a": 1}}, "by name"),
        ({"prior": "gausian"}, "did you mean 'gaussian'"),
        ({"prior": "tv", "prior_options": {"nonsense": 1}}, "nonsense"),
        ({"solver": "ddrn"}, "did you mean 'ddrm'"),
        ({"solver_options": {"etaa": 1}}, "eta"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"draws": 0}, "draws is 0"),
        ({"draws": True}, "draws is True"),
        ({"draws": 2.0, "solver": "pnp_hqs"}, "draws is 2.0: expected a whole number"),
        ({"draws": 0, "solver": "pnp_hqs"}, "draws is 0"),
        ({"sigma": True}, "sigma is True"),
        ({"device": torch.device("meta")}, "device is 'meta'"),
        ({"device": None}, "device is 'None'"),
        ({"operator": "blur", "operator_options": {"psf": np.ones((3, 3), complex)}}, "PSF is complex"),
        ({"operator": "blur", "operator_options": {"psf": np.ones(3)}}, r"PSF has the shape \(3,\)"),
        ({"operator": "blur", "operator_options": {"psf": np.ones((2, 3, 3))}}, "2 members"),
        ({"operator": "blur", "operator_options": {"psf": np.ones((3, 3)), "psf_index": 0}}, "with no PSF file"),
        ({"operator": "blur", "operator_options": {"psf_kind": "disk:1", "psf_index": 0}}, "psf_index is 0"),
        ({"operator": "downsample", "operator_options": {"factor": True}}, "factor is True"),
        ({"prior_options": {"scale": "abc"}}, "scale='abc'"),
        ({"prior_options": {"scale": True}}, "scale of the prior 'gaussian' is True"),
        ({"truth": np.zeros((8, 8, 3))}, "truth has shape"),
        ({"truth": np.zeros((16, 16, 3)), "simulate": True}, "Both truth and simulate"),
        (
            {"solver": "ddrm", "operator": "blur", "operator_options": {"psf_kind": "disk:1", "boundary": "zero"}},
            "needs an operator with an SVD",
        ),
    ],
)
def test_what_is_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        restore(
            _astronaut(16),
            **({"operator": "denoise", "sigma": 0.1, "prior": "gaussian", "progress": False} | arguments),
        )


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected an Operator"):
        restore(_astronaut(16), 3, sigma=0.1, **POINT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="returned int"):
        restore(_astronaut(16), lambda shape: 3, sigma=0.1, **POINT)  # type: ignore[arg-type,return-value]

    with pytest.raises(TypeError, match="data_range is '255'"):
        restore(_astronaut(16), sigma=0.1, data_range="255", **POINT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="image has dtype bool"):
        restore(_astronaut(16) > 100, sigma=0.1, **POINT)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    image, three = _astronaut(16), np.int64(3)
    drawn = restore(image, sigma=0.1, **(FAST | {"draws": three})).posterior  # type: ignore[arg-type]
    assert len(drawn) == 3
    assert drawn.record["draws"] == 3
    assert len(restore(image, sigma=0.1, draws=three, **POINT).posterior) == 1  # type: ignore[arg-type]
    assert build_operator("downsample", (1, 8, 9), factor=three).in_shape == (1, 24, 27)


@pytest.mark.parametrize(
    ("noise", "value", "sentence"),
    [
        (GaussianNoise, "x", "sigma is 'x': expected a number or a tensor"),
        (GaussianNoise, None, "sigma is None: expected"),
        (GaussianNoise, True, "sigma is True: expected"),
        (GaussianNoise, [0.1], r"sigma is \[0.1\]: expected"),
        (GaussianNoise, 1j, "sigma is 1j: expected"),
        (GaussianNoise, np.full((2, 3), 0.1), r"sigma is a numpy array of shape \(2, 3\): use torch.as_tensor"),
        (GaussianNoise, torch.ones(3, dtype=torch.bool), "sigma is a tensor of torch.bool"),
        (GaussianNoise, torch.ones(3, dtype=torch.complex64), "sigma is a tensor of torch.complex64"),
        (PoissonNoise, "x", "gain is 'x': expected one number"),
        (PoissonNoise, True, "gain is True: expected"),
    ],
)
def test_noise_levels_are_numbers(noise, value, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        noise(value)


def test_noise_levels_of_numpy_and_torch_are_numbers() -> None:
    z = torch.zeros(1, 2, 3)
    for sigma in (1, 0.5, np.float32(0.5), np.int64(1), torch.tensor(0.5), torch.ones(2, 3, dtype=torch.int64)):
        assert float(GaussianNoise(sigma).like(z).flatten()[0]) == float(torch.as_tensor(sigma).flatten()[0])
    assert float(PoissonNoise(np.float64(0.5)).log_prob(z, z)) == 0  # no photon where none can come


def test_a_posterior_is_not_saved_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    posterior = restore(_astronaut(16), sigma=0.1, **POINT).posterior
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*missing to save draws.safetensors in"):
        posterior.save(tmp_path / "missing" / "draws.safetensors")
    assert not list(tmp_path.iterdir())


def test_every_psf_of_a_stack_sums_to_one() -> None:
    stack = np.stack([np.ones((3, 3)), 5 * np.eye(3)])
    kernel = make_psf(stack)
    assert kernel is not None
    torch.testing.assert_close(kernel[0], torch.full((3, 3), 1 / 9, dtype=torch.float64))
    torch.testing.assert_close(kernel[1], torch.eye(3, dtype=torch.float64) / 3)
    flat = build_operator("blur", (1, 8, 8), psf=stack)(torch.full((2, 1, 8, 8), 0.7))
    torch.testing.assert_close(flat, torch.full((2, 1, 8, 8), 0.7))
    with pytest.raises(ValueError, match="positive sum"):
        build_operator("blur", (1, 8, 8), psf=np.stack([np.ones((3, 3)), np.zeros((3, 3))]))


def test_options_of_operators() -> None:
    assert build_operator("gray", (1, 8, 9)).in_shape == (3, 8, 9)
    assert build_operator("bayer", (1, 8, 9)).in_shape == (3, 8, 9)
    with pytest.raises(ValueError, match="takes a colour image"):
        build_operator("gray", (1, 8, 9), simulate=True)
    assert parse_psf("motion:5:90").shape == (7, 1)
    half = build_operator("mask", (3, 8, 8), mask_kind="half")
    assert half(torch.ones(1, 3, 8, 8)).mean() == 0.5
    text = build_operator("mask", (3, 40, 40), mask_kind="text", mask_seed=1)
    assert 0.4 < text(torch.ones(1, 3, 40, 40)).mean() < 1


def test_sigma_and_device_words() -> None:
    assert check_sigma("0.02") == 0.02
    assert check_sigma("AUTO") is None
    assert check_sigma(0) == 0
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cpu:0").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            pick_device("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["blur", "downsample", "mask", "gray", "denoise", "bayer"])
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    options = {"blur": {"psf_kind": "gaussian:1"}, "downsample": {"factor": 2}}.get(name, {})
    runs = [
        restore(_astronaut(), name, sigma=0.05, simulate=True, operator_options=options, device=device, **FAST)
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(runs[1].measurement.cpu(), runs[0].measurement, atol=1e-5, rtol=0)
    np.testing.assert_allclose(runs[1].posterior.draws.cpu(), runs[0].posterior.draws, atol=1e-3)
    assert runs[1].metrics["psnr"] == pytest.approx(runs[0].metrics["psnr"], abs=0.01)


def test_a_path_and_a_deepinv_physics_are_refused_in_a_sentence() -> None:
    class Physics:
        def A_adjoint(self, y: object) -> object:
            return y

    with pytest.raises(TypeError, match=r"image is the path 'cat\.png': expected an array; read it with"):
        restore("cat.png", sigma=0.1)
    with pytest.raises(TypeError, match="operator is a deepinv physics: wrap it with operators"):
        restore(np.zeros((8, 8)), Physics(), sigma=0.1)  # type: ignore[arg-type]
