"""The record: what ran is told apart by what it holds, and is plain JSON."""

from __future__ import annotations

import gc
import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invdiff import Posterior, priors, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    Mask,
    Matrix,
    Operator,
    from_function,
    gaussian_psf,
    random_mask,
    stack,
)
from invdiff.priors.cnn import DnCNN
from invdiff.priors.diffusion import DiffusionPrior
from invdiff.priors.unet import UNet
from invdiff.record import _KNOWN, describe, weight_hash
from invdiff.report import weight_hash as reported

SHAPE = (3, 8, 8)


def mask(seed: int) -> Mask:
    return Mask(random_mask(SHAPE, 0.5, seed=seed), SHAPE)


def network(value: float) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(1, 1, 3, padding=1)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def diffusion(value: float) -> DiffusionPrior:
    with torch.random.fork_rng(devices=[]):
        unet = UNet(channels=3, widths=(8, 12), blocks=1, embedding=16)
    for parameter in unet.parameters():
        nn.init.constant_(parameter, value)
    return DiffusionPrior(unet, sigma_data=0.25, sigma_range=(0.002, 50.0))


def plain(thing: object) -> Any:
    """The description after a journey through JSON, which must not change it."""
    found = describe(thing)
    assert json.loads(json.dumps(found)) == found
    return found


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (None, None),
        (True, True),
        ("word", "word"),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (torch.bfloat16, "bfloat16"),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.channels_last, "channels_last"),
        ((1, [2.0, "x"]), [1, [2.0, "x"]]),
        ({3: torch.float32}, {"3": "float32"}),
    ],
)
def test_plain_values(thing: object, expected: object) -> None:
    found = plain(thing)
    assert found == expected
    assert type(found) is type(expected)


def test_a_tensor_by_shape_and_hash() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    bytes_of_x = np.arange(6, dtype=np.float32).tobytes()
    assert plain(x) == {"shape": [2, 3], "dtype": "float32", "sha256": hashlib.sha256(bytes_of_x).hexdigest()}
    assert plain(x.T.contiguous().T) == plain(x), "the hash is of the values, not of how they lie in memory"
    z = torch.complex(x, x + 1)
    assert plain(z.conj()) == plain(z.conj().resolve_conj()) != plain(z)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tv", {"scale": 2.0, "iterations": 30}),
        ("wavelet", {"rule": "soft", "order": 4, "levels": 3}),
        ("nlm", {"patch": 3, "reach": 4}),
        ("natural", {"precision": "float32"}),
    ],
)
def test_the_settings_of_a_prior(name: str, options: dict[str, Any]) -> None:
    if name == "natural":
        prior: priors.Prior = diffusion(0.1)
        options = {"sigma_data": 0.25, "parametrization": "F"}
    else:
        prior = priors.load(name, **options)
    found = plain(prior)
    assert found["prior"] == prior.name
    assert found | options == found
    assert not [key for key in found if key.startswith("_")]


def test_networks_by_their_precision_and_weights() -> None:
    first, same, other = (
        DnCNN(network(v), channels=1, sigma_range=(0.0, 0.2), precision="float64") for v in (0.1, 0.1, 0.2)
    )
    found = plain(first)
    assert found["precision"] == "float64"
    assert found == plain(same)
    assert found["sha256"] == reported(first) != plain(other)["sha256"]
    assert "sha256" not in plain(priors.load("tv"))
    assert weight_hash(priors.load("tv")) is None


def test_the_diffusion_prior_has_one_hash() -> None:
    prior = diffusion(0.1)
    assert prior.sha256 == plain(prior)["sha256"] == reported(prior) == weight_hash(prior)
    assert prior.sha256 != diffusion(0.2).sha256


def test_a_wrapped_prior_is_described() -> None:
    prior = diffusion(0.1)
    found = plain(priors.match_channels(prior, 1))
    assert found["name"] == "GrayThroughColour"
    assert found["inner"] == plain(prior)
    assert found["sha256"] == prior.sha256
    assert plain(priors.FunctionPrior(priors.load("tv", iterations=7)))["inner"]["iterations"] == 7


def test_an_exact_prior_by_its_numbers() -> None:
    first, same, other = (priors.GaussianPrior.power_law((1, 3, 3), std=s) for s in (0.1, 0.1, 0.2))
    assert describe(first) == describe(same) != describe(other)
    assert json.loads(json.dumps(describe(first)))["mixture"]["power"]["shape"] == [3, 3]


PAIRS: dict[str, tuple[Operator, Operator, Operator]] = {
    "mask": (mask(0), mask(0), mask(1)),
    "blur": tuple(Blur(gaussian_psf(s, 5), SHAPE) for s in (1.0, 1.0, 1.1)),  # type: ignore[dict-item]
    "reflect": tuple(Blur(gaussian_psf(s, 5), SHAPE, boundary="reflect") for s in (1.0, 1.0, 1.1)),  # type: ignore[dict-item]
    "matrix": tuple(Matrix(torch.eye(2) * s, (2,)) for s in (1, 1, 2)),  # type: ignore[dict-item]
    "downsample": tuple(Downsample(f, SHAPE, kind="bicubic") for f in (2, 2, 4)),  # type: ignore[dict-item]
    "product": tuple(Grayscale(SHAPE) @ mask(s) for s in (0, 0, 1)),  # type: ignore[dict-item]
    "sum": tuple(Blur(gaussian_psf(1.0, 5), SHAPE) + mask(s) for s in (0, 0, 1)),  # type: ignore[dict-item]
    "multiple": tuple(f * mask(0) for f in (2, 2, 3)),  # type: ignore[dict-item]
    "stack": tuple(stack(mask(2), mask(s)) for s in (0, 0, 1)),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_operator_is_told_apart_by_its_numbers(name: str) -> None:
    first, same, other = PAIRS[name]
    assert plain(first) == plain(same) != plain(other)
    assert plain(first)["in_shape"] == list(first.in_shape)


@pytest.mark.parametrize("name", PAIRS)
def test_using_an_operator_does_not_change_its_description(name: str) -> None:
    fresh, used, _ = PAIRS[name]
    before = plain(fresh)
    used(torch.rand(1, *used.in_shape, generator=torch.Generator().manual_seed(0)))
    if hasattr(used, "vt"):
        used.singular, used.vt(torch.zeros(1, *used.in_shape))  # type: ignore[attr-defined]
    used.pinv(torch.zeros(1, *used.out_shape))  # type: ignore[attr-defined]
    assert plain(used) == before


def test_composed_operators_name_their_parts() -> None:
    found = plain(stack(mask(0), 2 * mask(1)))
    assert [part["name"] for part in found["operators"]] == ["Mask", "SpectralScaled"]
    assert found["operators"][1]["factor"] == 2
    assert found["operators"][1]["operators"] == [plain(mask(1))]
    assert plain(mask(0))["constants"]["mask"]["dtype"] == "float64"


def test_solvers_noise_and_functions() -> None:
    assert plain(solvers.load("ddrm", steps=7))["steps"] == 7
    assert plain(GaussianNoise(0.1)) == {"name": "GaussianNoise", "sigma": 0.1}
    assert plain(GaussianNoise(torch.tensor(0.1)))["sigma"]["shape"] == []

    def double(x: Tensor) -> Tensor:
        return 2 * x

    assert plain(from_function(double, SHAPE))["out_shape"] == list(SHAPE)


def test_the_shipped_prior_reports_one_hash() -> None:
    prior = priors.load_natural()
    assert prior.sha256 == plain(prior)["sha256"] == reported(prior)


def test_a_record_with_an_infinite_range_is_strict_json(tmp_path):
    """RFC 8259 has no infinity; the record comes back from the file of the draws as it was."""
    anything = priors.FunctionPrior(lambda x, sigma: 0.5 + (x - 0.5) / (1 + sigma**2), name="anything")
    posterior = sample(solvers.DDIM(steps=2), None, anything, in_shape=(1, 2, 2))
    assert posterior.record["prior"]["sigma_range"] == [0.0, "inf"]
    text = json.dumps(posterior.record, allow_nan=False)
    assert json.loads(text) == posterior.record
    posterior.save(tmp_path / "draws.safetensors")
    assert Posterior.load(tmp_path / "draws.safetensors").record == posterior.record
    assert describe([-np.inf, float("nan"), np.float32(0.5)]) == ["-inf", "nan", 0.5]


def test_a_constant_that_was_written_to_is_hashed_anew():
    operator = mask(0)
    before = describe(operator)
    assert describe(operator) == before
    assert describe(mask(0)) == before
    operator.singular[0, 0, 0] = 0.25
    changed = describe(operator)["constants"]["mask"]
    assert changed != before["constants"]["mask"]
    assert changed["sha256"] == hashlib.sha256(operator.singular.numpy().tobytes()).hexdigest()
    changed["sha256"] = "of the caller"
    assert describe(operator)["constants"]["mask"]["sha256"] != "of the caller"


def test_bytes_of_a_tensor_that_lies_in_no_row_or_is_empty():
    x = torch.arange(12.0).reshape(3, 4)
    assert describe(x.T)["sha256"] == hashlib.sha256(x.T.contiguous().numpy().tobytes()).hexdigest()
    assert describe(x[:, :0])["sha256"] == hashlib.sha256(b"").hexdigest()


def test_a_constant_written_to_through_numpy_is_hashed_anew():
    operator = mask(0)
    before = describe(operator)["constants"]["mask"]
    operator.singular.numpy()[0, 0, 0] = 0.25
    assert describe(operator)["constants"]["mask"] != before
    assert len([one for one in _KNOWN.values() if one[0]() is operator.singular]) == 1
    del operator
    gc.collect()
    assert all(one[0]() is not None for one in _KNOWN.values())


def test_describing_a_tensor_leaves_its_memory_as_it_was():
    x = torch.arange(4.0)
    describe(x)
    assert x.untyped_storage().resizable()
    x.resize_(8)
