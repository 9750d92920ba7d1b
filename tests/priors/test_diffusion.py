"""The diffusion prior: preconditioning, precision, locality, and the weights that ship."""

from __future__ import annotations

import copy

import pytest
import torch
from skimage import data

from invdiff.priors import load, match_channels, parametrization
from invdiff.priors.diffusion import DiffusionPrior, load_natural
from invdiff.priors.precision import resolve
from invdiff.priors.unet import UNet
from invdiff.priors.weights import save_prior
from invdiff.record import describe, weight_hash


def photograph(size: int = 128) -> torch.Tensor:
    image = torch.from_numpy(data.astronaut()[64 : 64 + size, 160 : 160 + size].copy())
    return image.permute(2, 0, 1)[None].float() / 255


def noisy(x: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def random_unet() -> UNet:
    """A network whose zero-initialised layers are filled, so that every path counts."""
    net = UNet(channels=3, widths=(8, 12, 16), blocks=1, embedding=16)
    generator = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator)
    return net


def test_scalings_give_unit_variance():
    """Karras et al. 2022, eqs. 114 to 120: the network's input and its target have unit variance."""
    sigma_data = 0.25
    x0 = sigma_data * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for level in (0.01, 0.3, 10.0):
        sigma = torch.tensor(level)
        c_skip, c_out = parametrization.scalings("F", sigma, sigma_data)
        c_in = parametrization.input_scale("edm", sigma, sigma_data)
        x = noisy(x0, level, seed=1)
        assert float((c_in * x).std()) == pytest.approx(1, rel=0.01)
        assert float(((x0 - c_skip * x) / c_out).std()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(("sigma", "gain"), [(0.05, 7.0), (0.1, 9.5), (0.3, 13.5), (1.0, 19.0)])
def test_the_shipped_prior_removes_noise_at_every_level(sigma, gain):
    x = photograph()
    y = noisy(x, sigma)
    assert psnr(load("natural")(y, sigma), x) > psnr(y, x) + gain


def test_bfloat16_costs_nothing_at_small_sigma():
    x = photograph()
    for sigma in (0.002, 0.004, 0.01, 0.05, 0.5):
        y = noisy(x, sigma)
        exact = load_natural(precision="float32")(y, sigma)
        half = load_natural(precision="bfloat16")(y, sigma)
        assert float((half - exact).square().mean().sqrt()) < 0.05 * sigma
        assert abs(psnr(half, x) - psnr(exact, x)) < 0.01


@pytest.mark.parametrize("kind", parametrization.KINDS)
def test_every_parametrisation_of_one_network(kind):
    """D = skip x + out f(c_in x, log(sigma) / 4) of the image minus one half, for what f predicts."""
    network = random_unet()
    prior = DiffusionPrior(
        network, sigma_data=0.25, sigma_range=(0.002, 50.0), parametrization=kind, precision="float64"
    )
    x, sigma = noisy(photograph(16), 0.3).double(), torch.tensor([0.3], dtype=torch.float64)
    centred = (x - 0.5).float()
    with torch.no_grad():
        fed = centred.double() / (sigma**2 + 0.25**2).sqrt()
        output = copy.deepcopy(network).double()(fed, sigma.log() / 4)
    expected = parametrization.to_x0(kind, output, centred.double(), sigma, 0.25) + 0.5
    torch.testing.assert_close(prior(x, sigma), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_precision_is_changed_on_a_copy_that_remembers_the_full_weights():
    prior = load_natural(precision="float32")
    half = prior.to(precision="bfloat16")
    y = noisy(photograph(32), 0.1)
    assert (prior.precision, half.precision) == ("float32", "bfloat16")
    assert half.to("cpu") is half
    assert half.sha256 == prior.sha256 == weight_hash(half)
    assert not torch.equal(half(y, 0.1), prior(y, 0.1))
    assert torch.equal(half.to(precision="float32")(y, 0.1), prior(y, 0.1))
    auto = prior.to(precision="auto")
    assert auto.precision == str(resolve("auto", "cpu")).removeprefix("torch.")
    with pytest.raises(ValueError, match="precision is 'int8': expected one of auto"):
        prior.to(precision="int8")


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_image():
    prior = DiffusionPrior(random_unet(), sigma_data=0.25, sigma_range=(0.002, 50.0), precision="float32")
    y = noisy(photograph(16), 0.1)
    compiled = prior.to(compile=True)
    assert compiled is not prior
    assert (prior.compiled, compiled.compiled) == (False, True)
    assert compiled.to("cpu") is compiled
    assert not compiled.to(compile=False).compiled
    assert compiled.to(precision="float64").compiled, "what is left out stays as it is"
    assert describe(compiled) != describe(prior), "compilation changes the last bits, so the record tells"
    expected = prior(y, 0.1)
    torch.testing.assert_close(compiled(y, 0.1), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_any_size_and_each_member_on_its_own():
    prior = load_natural(precision="float32")
    x = noisy(photograph(64), 0.1).repeat(3, 1, 1, 1)[..., :37, :50]
    sigma = torch.tensor([0.05, 0.1, 0.4])
    together = prior(x, sigma)
    assert together.shape == x.shape
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], prior(x[k : k + 1], sigma[k]), atol=1e-5, rtol=0)
    assert prior(x.double(), sigma).dtype == torch.float64
    assert prior(x[..., :1, :3], 0.1).shape == (3, 3, 1, 3)


def test_nothing_beyond_the_receptive_radius_matters():
    prior = DiffusionPrior(random_unet(), sigma_data=0.25, sigma_range=(0.002, 50.0), precision="float32")
    radius = prior.receptive_radius
    side = 2 * radius + 17
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = prior(x, 0.3)
    (slope,) = torch.autograd.grad(out[0, :, radius + 8, radius + 8].sum(), x)
    reach = slope.abs().sum((0, 1)).nonzero()
    assert int((reach - (radius + 8)).abs().max()) <= radius
    assert int((reach - (radius + 8)).abs().max()) >= radius - 8, "the declared radius is not needlessly large"


def test_gradients_flow():
    x = noisy(photograph(32), 0.2).requires_grad_(True)
    prior = load_natural(precision="float32")
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((prior(x, 0.2) * direction).sum(), x)
    step = 1e-2
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = (prior(x + step * probe, 0.2) - prior(x - step * probe, 0.2)).mul(direction).sum() / (2 * step)
    assert float((slope * probe).sum()) == pytest.approx(float(difference), rel=0.02, abs=0.5)


def test_the_card_says_what_it_learned_from():
    card = load("natural").card
    assert {"config", "images", "sources", "sigma_range", "sigma_data"} <= set(card)
    assert "/" not in str(card["config"].get("data"))


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="precision is 'half': expected one of auto, float32, bfloat16, float64"):
        load_natural(precision="half")
    with pytest.raises(FileNotFoundError):
        load_natural(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="above the range of natural"):
        load("natural")(photograph(16), 100.0)
    with pytest.raises(ValueError, match=r"natural takes images of 3 channel\(s\), got 1"):
        load("natural")(torch.zeros(1, 1, 16, 16), 0.1)


def test_the_callers_network_is_left_as_it_was():
    network = random_unet().train()
    before = copy.deepcopy(network.state_dict())
    DiffusionPrior(network, sigma_data=0.25, sigma_range=(0.002, 50.0))
    assert network.training
    assert all(value.requires_grad for value in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_float64_is_float64_throughout():
    prior = load_natural(precision="float64")
    x = noisy(photograph(16), 0.1).double()
    fine = prior(x, 0.1)
    assert fine.dtype == torch.float64
    coarse = prior(x.float(), 0.1)
    difference = float((fine - coarse.double()).abs().max())
    assert 0 < difference < 1e-5


def test_every_prior_takes_the_words_of_a_network():
    """`prior.to(device, precision=..., compile=...)` is one call for the whole slot, adapters included."""
    tv = load("tv")
    assert tv.to("cpu", precision="auto", compile=True) is tv
    gray = match_channels(load_natural(precision="float32"), 1)
    assert gray.to(precision="bfloat16").prior.precision == "bfloat16"


def test_a_file_of_ones_own_training_by_its_name(tmp_path):
    card = {"sigma_range": [0.002, 50.0], "sigma_data": 0.25}
    network = random_unet()
    save_prior(tmp_path / "Mine.safetensors", network.state_dict(), network.config, card)
    prior = load(f"Natural:{tmp_path / 'Mine.safetensors'}", precision="float32")
    assert prior.name == "Mine"
    same = load("natural", path=tmp_path / "Mine.safetensors", precision="float32")
    assert torch.equal(prior(photograph(16), 0.1), same(photograph(16), 0.1))
    with pytest.raises(ValueError, match="'natural' needs an argument: write 'natural:PATH' with the file of weights"):
        load("natural:")


def test_the_checkpoint_of_training_is_told_from_its_prior(tmp_path):
    checkpoint = tmp_path / "last.pt"
    with pytest.raises(FileNotFoundError, match=r"last\.pt does not exist"):
        load_natural(checkpoint)
    torch.save({"network": {}, "step": 3}, checkpoint)
    with pytest.raises(
        ValueError, match=r"last\.pt looks like the checkpoint .* is NAME\.safetensors in the same folder"
    ):
        load_natural(checkpoint)
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    (tmp_path / ".average.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"the prior is mine\.safetensors in the same folder"):
        load(f"natural:{checkpoint}")


@pytest.mark.parametrize(
    ("network", "card", "sentence"),
    [
        ({"channels": 3, "depth": 3}, {}, "holds no U-Net of this package"),
        ({"channels": 3, "widths": [8, 12], "blocks": 1, "embedding": 8}, {}, "holds no U-Net of this package"),
        (
            {"channels": 3, "widths": [8, 12], "blocks": 1, "embedding": 8},
            {"sigma_range": [0.002, 50.0], "sigma_data": 0.25},
            "does not fit UNet: it lacks 'embed.0.weight'",
        ),
    ],
)
def test_a_file_of_something_else_is_refused_in_a_sentence(tmp_path, network, card, sentence):
    path = tmp_path / "other.safetensors"
    save_prior(path, {"weight": torch.zeros(2)}, network, card)
    with pytest.raises(ValueError, match=sentence):
        load_natural(path)
