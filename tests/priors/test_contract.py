"""What every prior of the package keeps, whatever stands behind it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import priors
from invdiff.priors import Prior
from invdiff.priors.adapters import from_deepinv
from invdiff.priors.adm import ADM
from invdiff.priors.base import FunctionPrior
from invdiff.priors.channels import ColourThroughGray, GrayThroughColour
from invdiff.priors.cnn import DRUNetwork
from invdiff.priors.unet import UNet
from invdiff.priors.weights import save_prior


def stack_file(folder: Path, name: str, widths: list[int]) -> Path:
    """A file of small random weights under the names of a KAIR stack."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for n, (taken, made) in enumerate(itertools.pairwise(widths)):
        state[f"model.{2 * n}.weight"] = 0.05 * torch.randn(made, taken, 3, 3, generator=generator)
        state[f"model.{2 * n}.bias"] = 0.01 * torch.randn(made, generator=generator)
    torch.save(state, folder / name)
    return folder / name


def drunet_file(folder: Path) -> Path:
    """A file of small random weights under the names of the published DRUNet."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in DRUNetwork(3, [4, 6, 8, 10], 1).state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    torch.save({key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}, folder / "r.pth")
    return folder / "r.pth"


def adm_file(folder: Path) -> Path:
    """A file of small random weights under the names of guided diffusion, which learned a variance."""
    with torch.device("meta"):
        network = ADM(width=32, multipliers=(1, 1), attention=(2,), head_channels=32, returned=6)
        shapes = {key: value.shape for key, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    torch.save({key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}, folder / "a.pt")
    return folder / "a.pt"


def natural_file(folder: Path) -> Path:
    """A small random network in a file of the kind that the shipped prior comes in."""
    config = {"channels": 3, "widths": [8, 12], "blocks": 1, "embedding": 16}
    with torch.random.fork_rng(devices=[]):
        shapes = {key: value.shape for key, value in UNet(**config).state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    state = {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_prior(folder / "n.safetensors", state, config, {"sigma_range": [0.002, 50.0], "sigma_data": 0.25})
    return folder / "n.safetensors"


def coloured(sigma_range: tuple[float, float] = (0.0, 1.0), channels: int = 3) -> Prior:
    """A smoother that takes one number of channels, for the channel adapters."""
    return FunctionPrior(priors.load("wavelet"), sigma_range=sigma_range, channels=channels, per_member=True)


def median_of_deepinv() -> Prior:
    from deepinv.models import MedianFilter

    return from_deepinv(MedianFilter(kernel_size=3))


# name -> constructor given a folder for files and the precision of networks
MAKERS: dict[str, Callable[[Path, str], Prior]] = {
    "gaussian": lambda folder, precision: priors.load("gaussian"),
    "median": lambda folder, precision: priors.load("median"),
    "bilateral": lambda folder, precision: priors.load("bilateral"),
    "wavelet": lambda folder, precision: priors.load("wavelet"),
    "wavelet soft": lambda folder, precision: priors.load("wavelet", rule="soft"),
    "wavelet garrote": lambda folder, precision: priors.load("wavelet", rule="garrote"),
    "wavelet hard": lambda folder, precision: priors.load("wavelet", rule="hard", order=4),
    "tv": lambda folder, precision: priors.load("tv", iterations=30),
    "nlm": lambda folder, precision: priors.load("nlm", reach=4),
    "dncnn": lambda folder, precision: priors.load(
        f"dncnn:{stack_file(folder, 'd.pth', [3, 5, 5, 3])}", sigma_range=(0.0, 0.3), precision=precision
    ),
    "ffdnet": lambda folder, precision: priors.load(
        f"ffdnet:{stack_file(folder, 'f.pth', [13, 6, 12])}", precision=precision
    ),
    "drunet": lambda folder, precision: priors.load(f"drunet:{drunet_file(folder)}", precision=precision),
    "adm": lambda folder, precision: priors.load(
        f"adm:{adm_file(folder)}", precision=precision, head_channels=32, self_test=False
    ),
    "gray through colour": lambda folder, precision: GrayThroughColour(coloured()),
    "colour through gray": lambda folder, precision: ColourThroughGray(coloured(channels=1)),
    "colour through one level": lambda folder, precision: ColourThroughGray(coloured((0.1, 0.1), 1)),
    "deepinv median": lambda folder, precision: median_of_deepinv(),
}
SMOOTHERS = [
    "gaussian",
    "median",
    "bilateral",
    "wavelet",
    "wavelet soft",
    "wavelet garrote",
    "wavelet hard",
    "tv",
    "nlm",
]


@pytest.fixture(params=MAKERS)
def prior(request: pytest.FixtureRequest, tmp_path: Path) -> Prior:
    return MAKERS[request.param](tmp_path, "float32")


def images(prior: Prior, batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, prior.channels or 3, height, width, generator=generator, dtype=dtype)


def level(prior: Prior, share: float = 0.5) -> float:
    low, high = prior.sigma_range
    return low + share * (min(high, 0.3) - low)


@pytest.mark.parametrize("size", [(16, 16), (15, 18), (9, 7), (1, 1), (2, 33)])
def test_any_size_keeps_shape_and_stays_finite(prior: Prior, size: tuple[int, int]) -> None:
    if prior.name == "deepinv:MedianFilter" and size == (1, 1):
        pytest.skip("deepinv's median filter cannot pad a single pixel")
    x = images(prior, 2, *size)
    result = prior(x, level(prior))
    assert result.shape == x.shape
    assert result.dtype == x.dtype
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SMOOTHERS)
def test_smoothers_take_any_number_of_channels(name: str, channels: int, tmp_path: Path) -> None:
    x = torch.rand(1, channels, 12, 11, generator=torch.Generator().manual_seed(0))
    assert MAKERS[name](tmp_path, "float32")(x, 0.1).shape == x.shape


def test_a_member_does_not_depend_on_its_batch(prior: Prior) -> None:
    x = images(prior, 4, 20, 17)
    sigma = torch.tensor([level(prior, share) for share in (0.2, 1.0, 0.2, 0.6)])
    together = prior(x, sigma)
    alone = torch.cat([prior(x[k : k + 1], float(sigma[k])) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_the_input_is_not_written_and_calls_repeat(
    name: str, tmp_path: Path, global_random_state_is_untouched: None
) -> None:
    prior = MAKERS[name](tmp_path, "float32")
    x = images(prior, 2, 16, 19)
    sigma = torch.full((2,), level(prior))
    kept, kept_sigma = x.clone(), sigma.clone()
    first = prior(x, sigma)
    first_kept = first.clone()
    second = prior(x, sigma)
    assert torch.equal(x, kept)
    assert torch.equal(sigma, kept_sigma)
    assert torch.equal(first, first_kept)
    assert torch.equal(first, second)


def test_loading_the_diffusion_prior_leaves_the_random_state(
    tmp_path: Path, global_random_state_is_untouched: None
) -> None:
    prior = priors.load("natural", path=natural_file(tmp_path), precision="float32")
    assert prior.to("cpu") is prior
    assert torch.isfinite(prior(images(prior, 1, 8, 8), 0.1)).all()


def test_a_network_is_copied_only_to_another_device(prior: Prior) -> None:
    assert prior.to("cpu") is prior
    assert prior.to(torch.device("cpu", 0)) is prior


def test_float64_agrees_with_float32(prior: Prior) -> None:
    x = images(prior, 2, 16, 19, torch.float64)
    fine = prior(x, level(prior))
    assert fine.dtype == torch.float64
    # A threshold may fall between the two roundings of one coefficient, hence a quantile and not the maximum.
    difference = (fine - prior(x.float(), level(prior)).double()).abs().flatten()
    assert float(difference.quantile(0.99)) < 1e-4


def test_sigma_above_the_range_is_refused(prior: Prior) -> None:
    high = prior.sigma_range[1]
    with pytest.raises(ValueError, match=r"above the range of .* start at a lower noise level"):
        prior(images(prior, 1, 16, 16), 1.01 * high)
    prior(images(prior, 1, 16, 16), high)


def test_sigma_below_the_range_is_served_as_its_lowest(prior: Prior) -> None:
    x = images(prior, 1, 16, 16)
    assert torch.equal(prior(x, 0.5 * prior.sigma_range[0]), prior(x, prior.sigma_range[0]))


def test_another_channel_count_is_refused_with_the_way_out(prior: Prior) -> None:
    if prior.channels is None:
        pytest.skip("this prior takes any number of channels")
    with pytest.raises(ValueError, match=r"match_channels\(prior, 5\)"):
        prior(torch.rand(1, 5, 8, 8), 0.1)


@pytest.mark.parametrize("name", MAKERS)
def test_the_differentiable_flag_is_honest(name: str, tmp_path: Path) -> None:
    prior = MAKERS[name](tmp_path, "float64")
    x = images(prior, 1, 10, 9, torch.float64).requires_grad_()
    result = prior(x, level(prior))
    if not prior.differentiable:
        assert not result.requires_grad
        return
    generator = torch.Generator().manual_seed(5)
    direction, weight = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    (slope,) = torch.autograd.grad((result * weight).sum(), x)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (prior(x + s * step * direction, level(prior)) for s in (1, -1))
    expected = ((ahead - behind) * weight).sum() / (2 * step)
    assert abs(float((slope * direction).sum() - expected)) < 1e-5 * max(abs(float(expected)), 1.0)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMOOTHERS)
def test_denoising_gains_psnr(name: str, channels: int, sigma: float, tmp_path: Path) -> None:
    from skimage import data

    truth = torch.from_numpy(data.astronaut()[60:140, 180:260] / 255.0).permute(2, 0, 1)[None].float()
    truth = truth if channels == 3 else truth.mean(dim=1, keepdim=True)
    noisy = truth + sigma * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    gain = (
        10
        * ((noisy - truth).square().mean() / (MAKERS[name](tmp_path, "")(noisy, sigma) - truth).square().mean()).log10()
    )
    # The least that any of them gains here, rounded down; the stronger ones gain several dB more.
    assert float(gain) > {0.05: 1.0, 0.1: 3.0, 0.3: 9.0}[sigma]


@pytest.mark.parametrize("name", SMOOTHERS)
def test_sigma_zero_returns_the_image(name: str, tmp_path: Path) -> None:
    x = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    prior = MAKERS[name](tmp_path, "")
    result = prior(x, torch.tensor([0.0, 0.1]))
    assert torch.equal(result[0], x[0])
    assert not torch.equal(result[1], x[1])


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["natural", *(name for name in MAKERS if name != "deepinv median")])
def test_cuda_agrees_with_the_cpu(name: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    natural = name == "natural"
    prior = priors.load("natural", precision="float32") if natural else MAKERS[name](tmp_path, "float32")
    x = images(prior, 2, 32, 31)
    moved = prior.to(device="cuda")
    assert moved.to("cuda") is moved
    difference = (moved(x.cuda(), level(prior)).cpu() - prior(x, level(prior))).abs().flatten()
    assert float(difference.quantile(0.99)) < 1e-3
