"""Foreign networks of every kind become the denoiser that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff.priors import from_network
from invdiff.process import EDM, VE, Discrete, Flow, Process, VPCosine, VPLinear

BETAS = torch.linspace(1e-4, 0.02, 1000)
MEAN, STD = 0.4, 0.2  # of independent Gaussian pixels, image units


def exact(x: Tensor, sigma: float) -> Tensor:
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def gaussian_network(kind: str, process: Process, low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The network that a perfect training on those pixels would give, from the definition of each kind."""
    mean, variance = low + (high - low) * MEAN, ((high - low) * STD) ** 2

    def network(x: Tensor, t: Tensor) -> Tensor:
        if kind == "F":  # told log(sigma) / 4 and fed c_in z, with sigma_data = 0.5
            sigma = (4 * t.double()).exp()[:, None, None, None]
            z = x * (sigma**2 + 0.25).sqrt()
        else:
            sigma, scale = (f(t.double())[:, None, None, None] for f in (process.sigma, process.scale))
            z = x / scale
        x0 = (variance * z + sigma**2 * mean) / (variance + sigma**2)
        eps = (z - x0) / sigma
        if kind == "F":
            return (x0 - 0.25 / (sigma**2 + 0.25) * z) * (sigma**2 + 0.25).sqrt() / (0.5 * sigma)
        return {
            "eps": eps,
            "x0": x0,
            "v": scale * eps - (1 - scale**2).clamp_min(0).sqrt() * x0,
            "flow": eps - x0,
            # grad log of N(scale mean, scale^2 (variance + sigma^2)) at x_t
            "score": -(x - scale * mean) / (scale**2 * (variance + sigma**2)),
        }[kind]

    return network


VP: list[Process] = [VPLinear(), VPCosine(), Discrete.from_betas(BETAS)]
VES: list[Process] = [VE(0.01, 100.0), Discrete.from_sigmas(torch.logspace(2, -2, 300)), EDM(0.002, 80.0)]
CASES = [
    *[(kind, process) for kind in ("eps", "x0", "v", "score") for process in VP],
    *[(kind, process) for kind in ("eps", "x0", "score") for process in VES],
    ("flow", Flow()),
    ("F", EDM()),
]


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 3.0)])
@pytest.mark.parametrize(("kind", "process"), CASES)
def test_a_perfect_network_is_the_exact_denoiser(kind: str, process: Process, data_range: tuple[float, float]) -> None:
    network = gaussian_network(kind, process, *data_range)
    prior = from_network(
        network,
        predicts=kind,
        schedule=process,
        data_range=data_range,
        channels=2,
        precision="float64",
        self_test=False,
    )
    x = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = torch.tensor([0.05, 0.7, 12.0], dtype=torch.float64)
    expected = torch.cat([exact(x[k : k + 1], float(sigmas[k])) for k in range(3)])
    torch.testing.assert_close(prior(x, sigmas), expected, rtol=0, atol=1e-8)


def test_the_range_is_that_of_the_process_in_image_units() -> None:
    common: dict[str, Any] = {"predicts": "eps", "channels": 1, "self_test": False}
    ddpm = from_network(lambda x, t: x, betas=BETAS, **common)
    assert ddpm.sigma_range == pytest.approx((0.005, 78.7), rel=1e-2)
    assert from_network(lambda x, t: x, sigmas=torch.tensor([0.5, 2.0]), data_range=(0, 1), **common).sigma_range == (
        pytest.approx((0.5, 2.0))
    )
    assert from_network(lambda x, t: x, betas=BETAS, sigma_range=(0.1, 0.2), **common).sigma_range == (0.1, 0.2)
    with pytest.raises(ValueError, match="above the range"):
        ddpm(torch.zeros(1, 1, 2, 2), 79.0)
    flow = from_network(lambda x, t: x, predicts="flow", channels=1, self_test=False)
    assert flow.sigma_range == (0.0, math.inf)


@pytest.mark.parametrize(
    ("time", "expected", "dtype"),
    [
        (None, 499.5, torch.float32),
        ("fraction", 499.5, torch.float32),
        ("integer", 500, torch.int64),
        (lambda t: t / 1000, 0.4995, torch.float32),
    ],
)
def test_what_the_network_is_told(time: Any, expected: float, dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    process = Discrete.from_betas(BETAS)
    prior = from_network(
        network, predicts="eps", schedule=process, time=time, channels=1, self_test=False, precision="float32"
    )
    prior(torch.zeros(2, 1, 3, 3), float(process.sigma(499.5)) / 2)
    assert seen[0].shape == (2,)
    assert seen[0].dtype == dtype
    assert seen[0].tolist() == pytest.approx([expected] * 2, abs=1e-3)


def test_sizes_are_padded_and_cropped_and_colours_turned() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return x

    prior = from_network(
        network,
        predicts="x0",
        sigmas=torch.tensor([0.1, 0.2]),
        data_range=(0, 1),
        channels=3,
        multiple=8,
        bgr=True,
        self_test=False,
        precision="float32",
    )
    x = torch.rand(2, 3, 9, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior(x, 0.1), x)
    assert seen[0].shape == (2, 3, 16, 16)
    assert torch.equal(seen[0][:, :, :9], x.flip(1))
    assert torch.equal(seen[0][:, :, 15], x.flip(1)[:, :, 8])


class Small(nn.Module):
    def __init__(self, made: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, made, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x) * (1 + 1e-3 * t[:, None, None, None])


def test_a_module_is_frozen_moved_and_recorded() -> None:
    from invdiff.record import describe

    network = Small()
    prior = from_network(network, predicts="v", betas=BETAS, self_test=False, precision="float32")
    assert (prior.name, prior.channels) == ("Small", 3)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    frozen: Any = prior.network
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.conv.weight.data_ptr() == network.conv.weight.data_ptr()
    assert prior.to("cpu") is prior
    moved: Any = prior.to("meta")
    assert next(moved.network.parameters()).is_meta
    assert not next(network.parameters()).is_meta
    record = describe(prior)
    assert len(record["sha256"]) == 64
    assert record["predicts"] == "v"
    assert record["data_range"] == [-1.0, 1.0]
    assert record["process"]["name"] == "Discrete"
    wide = prior.to(precision="float64")
    assert wide.precision == "float64"
    assert describe(wide)["sha256"] == record["sha256"]
    assert next(network.parameters()).dtype == torch.float32


def test_bfloat16_costs_little_as_the_skip_path_stays_in_float32() -> None:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fine, coarse = (
        from_network(Small(), predicts="eps", betas=BETAS, self_test=False, precision=precision)(x, 0.01)
        for precision in ("float32", "bfloat16")
    )
    assert 0 < float((fine - coarse).abs().max()) < 0.02 * 0.01


def test_gradients_go_through() -> None:
    prior = from_network(Small(), predicts="v", betas=BETAS, self_test=False, precision="float64")
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prior(x, 0.3), (x,))


def test_learned_variances() -> None:
    common: dict[str, Any] = {"predicts": "eps", "betas": BETAS, "self_test": False, "precision": "float32"}
    x = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    network = Small(6)
    first = Small()
    first.conv.weight.data, first.conv.bias.data = network.conv.weight[:3], network.conv.bias[:3]  # type: ignore[index]
    torch.testing.assert_close(
        from_network(network, learned_sigma=True, **common)(x, 0.3), from_network(first, **common)(x, 0.3)
    )
    with pytest.raises(ValueError, match=r"Small must return \(1, 3, 5, 6\).*got \(1, 6, 5, 6\); .*learned_sigma=True"):
        from_network(network, **common)(x, 0.3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_modules_of_every_dtype_in_every_precision_and_back(dtype: torch.dtype) -> None:
    from invdiff.record import describe

    network = Small().to(dtype)
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first = from_network(network, predicts="v", betas=BETAS, self_test=False, precision="float32")
    expected, before = first(x, 0.3), describe(first)
    for precision in ("float64", "bfloat16", "float32"):
        other = first.to(precision=precision)
        torch.testing.assert_close(other(x, 0.3), expected, rtol=0, atol=0.02 if precision == "bfloat16" else 1e-5)
        assert describe(other) == before | {"precision": precision}
        assert torch.equal(other.to(precision="float32")(x, 0.3), expected)
    assert network.conv.weight.dtype == dtype


def test_compiling_is_recorded_and_kept() -> None:
    from invdiff.record import describe

    prior = from_network(Small(), predicts="v", betas=BETAS, self_test=False, precision="float32")
    fast = prior.to(compile=True)
    assert (prior.compiled, fast.compiled, describe(fast)["compiled"]) == (False, True, True)
    assert fast.to(precision="float64").compiled
    assert not fast.to(compile=False).compiled
    assert fast.to(compile=True) is fast


def test_no_noise_at_all_is_a_number() -> None:
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    prior = from_network(Small(), predicts="F", sigma_range=(0.0, 40.0), self_test=False, precision="float32")
    torch.testing.assert_close(prior(image, 0.0), image, rtol=0, atol=1e-2)


def test_a_table_of_times_is_asked_in_whole_numbers() -> None:
    class Table(Small):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                self.table = nn.Embedding(1000, 3)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x) + self.table(t)[:, :, None, None]

    network, x = Table(), torch.full((1, 3, 4, 4), 0.5)
    common: dict[str, Any] = {"predicts": "eps", "betas": BETAS, "self_test": False}
    found = from_network(network, time=lambda t: t.round().long(), **common)(x, 0.3)
    assert torch.equal(found, from_network(network, time="integer", **common)(x, 0.3))


def test_the_record_tells_functions_of_time_apart() -> None:
    from invdiff.record import describe

    common: dict[str, Any] = {"predicts": "eps", "schedule": VPLinear(), "channels": 1, "self_test": False}
    one, same, other = (
        describe(from_network(lambda x, t: x, time=time, **common))
        for time in (lambda t: 999 * t, lambda t: 999 * t, lambda t: t)
    )
    assert one == same != other


def settings(**changes: Any) -> dict[str, Any]:
    return {"predicts": "eps", "betas": BETAS, "channels": 1, "self_test": False} | changes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"predicts": "noise"}, "predicts is 'noise': expected one of eps, x0, v"),
        ({"betas": None}, "noise levels of a network that predicts eps are not known: give betas"),
        ({"sigmas": torch.ones(2)}, "betas and sigmas are given: expected one of them"),
        ({"betas": torch.tensor([0.1, 1.2])}, "betas has shape"),
        ({"data_range": (1, -1)}, r"data_range is \(1, -1\): expected \(black, white\)"),
        ({"time": "index"}, "time is 'index': expected fraction, integer or a function"),
        ({"data_range": 255}, r"data_range is 255: expected \(black, white\) such as .*\(0, 255\)"),
        ({"data_range": (0, 1, 2)}, r"data_range is \(0, 1, 2\): expected \(black, white\)"),
        ({"data_range": "ab"}, r"data_range is 'ab': expected \(black, white\)"),
        ({"channels": None, "betas": None}, "give betas, alphas_bar, sigmas or schedule"),
        ({"channels": None, "betas": BETAS + 1}, "betas has shape"),
        ({"channels": None}, "image channels that <lambda> takes cannot be told: give channels"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"sigma_range": (2, 1)}, "sigma_range of <lambda> must be"),
        ({"sigma_range": (0, 80)}, "sigma_range of <lambda> reaches 80, and its noise levels end at 78"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_network(lambda x, t: x, **settings(**options))


def test_networks_that_do_not_answer() -> None:
    with pytest.raises(TypeError, match="A network must be callable"):
        from_network("net", **settings())  # type: ignore[arg-type]
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"must return a tensor, got tuple; wrap the network in a function of \(x, t\)"
    ):
        from_network(lambda x, t: (x, x), **settings())(x, 0.1)  # type: ignore[arg-type, return-value]
    with pytest.raises(
        ValueError, match=r"must return \(1, 1, 4, 4\) for images of \(1, 1, 4, 4\), got \(1, 1, 2, 4\)\."
    ):
        from_network(lambda x, t: x[:, :, ::2], **settings())(x, 0.1)
    with pytest.raises(ValueError, match=r"takes images of 28x28 pixels, got 4x4\."):
        from_network(lambda x, t: x, **settings(size=(28, 28)))(x, 0.1)
    with pytest.raises(ValueError, match="returns numbers that are not finite"):
        from_network(lambda x, t: x / 0, **settings(self_test=True))
