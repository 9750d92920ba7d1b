"""A prior in tiles against the same prior on the whole image."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from torch import Tensor, nn

from invdiff import Likelihood, restore, sample
from invdiff.cli import main
from invdiff.images import write_image
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask
from invdiff.operators.mask import random_mask
from invdiff.priors import FunctionPrior, Tiled, load, match_channels
from invdiff.priors.base import Prior
from invdiff.priors.channels import ColourThroughGray
from invdiff.priors.cnn import DnCNN, DRUNet, DRUNetwork, FFDNet
from invdiff.priors.diffusion import DiffusionPrior
from invdiff.priors.tiled import in_tiles
from invdiff.priors.unet import UNet
from invdiff.record import describe
from invdiff.solvers import DDRM, DPS


def small(seed: int = 0) -> DiffusionPrior:
    """A U-Net of stride 4 and radius 36, with weights that let far pixels matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(widths=(4, 6, 8), blocks=1, embedding=16)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
        # Not so wild that the last bit of a result decides where a run ends.
        nn.init.normal_(network.tail.weight, std=0.02)
    return DiffusionPrior(network, sigma_data=0.25, sigma_range=(0.002, 50.0), precision="float32")


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(150, 111), (76, 77), (201, 60), (80, 80), (3, 97)])
def test_tiles_that_see_far_enough_give_the_whole_images_result(size):
    prior = small()
    assert (prior.stride, prior.receptive_radius) == (4, 36)
    x, sigma = image(2, 3, *size), torch.tensor([0.1, 3.0])
    whole, tiled = prior(x, sigma), Tiled(prior, tile=76)(x, sigma)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-5)


def test_less_overlap_than_the_radius_shows_and_less_so_the_more_there_is():
    prior, x = small(), image(1, 3, 160, 160)
    whole = prior(x, 1.0)
    errors = [float((Tiled(prior, 80, overlap)(x, 1.0) - whole).square().mean().sqrt()) for overlap in (0, 8, 16, 36)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 1e3 * errors[3]


def test_the_shipped_prior_agrees_with_itself():
    prior = load("natural", precision="float32")
    assert (prior.stride, prior.receptive_radius) == (8, 136)
    x = image(1, 3, 90, 331)
    for sigma in (0.02, 10.0):
        whole = prior(x, sigma)
        torch.testing.assert_close(Tiled(prior, 288)(x, sigma), whole, rtol=0, atol=2e-6)
        difference = Tiled(prior, 288, 96)(x, sigma) - whole
        assert float(difference.square().mean().sqrt()) < 1e-3


@pytest.mark.parametrize("overlap", [0, 8, 20, 36, 40])
@pytest.mark.parametrize("length", [81, 100, 163, 500, 1001])
def test_windows_sum_to_one_and_tiles_keep_their_size(overlap, length):
    tiled = Tiled(small(), 84, overlap)
    total = torch.zeros(length)
    for part in tiled._parts(length, total):
        total[part.kept] += part.window
        assert part.read.start % 4 == 0
        assert part.read.stop - part.read.start <= 84
        assert part.read.start + part.inside.start == part.kept.start
        assert part.read.stop - part.read.start >= part.inside.stop
    torch.testing.assert_close(total, torch.ones(length), rtol=0, atol=2e-7)


def test_a_constant_comes_through_every_window():
    same = FunctionPrior(lambda x, sigma: 2 * x, name="twice")
    x = torch.full((1, 2, 70, 50), 0.25)
    torch.testing.assert_close(Tiled(same, 32, 12)(x, 0.1), 2 * x, rtol=0, atol=1e-6)


def test_a_members_bits_do_not_depend_on_the_others():
    tiled, x = Tiled(small(), 76), image(3, 3, 100, 90)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    together = tiled(x, sigma)
    for k in range(3):
        assert torch.equal(tiled(x[k : k + 1], sigma[k : k + 1]), together[k : k + 1])
    assert tiled(x[:0], 0.1).shape == (0, 3, 100, 90)


@pytest.mark.parametrize("overlap", [None, 16])
def test_products_with_the_jacobian_are_those_of_the_whole_image(overlap):
    prior, v = small(), image(2, 3, 84, 60, seed=1)
    tiled = Tiled(prior, 80, overlap)
    x = image(2, 3, 84, 60).requires_grad_(True)
    out = tiled(x, 1.0)
    (slope,) = torch.autograd.grad(out, x, v, retain_graph=True)
    (again,) = torch.autograd.grad(out, x, v)
    assert torch.equal(slope, again), "a graph that is kept serves again"
    if overlap is None:
        (whole,) = torch.autograd.grad(prior(x, 1.0), x, v)
        torch.testing.assert_close(slope, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    # By definition: the transpose of what a small step does, where the tiles are their own denoiser.
    exact = tiled.to(precision="float64")
    step = image(2, 3, 84, 60, seed=2).double() - 0.5
    with torch.no_grad():
        change = (exact(x.double() + 1e-5 * step, 1.0) - exact(x.double() - 1e-5 * step, 1.0)) / 2e-5
    assert float((change * v).sum()) == pytest.approx(float((slope * step).sum()), rel=1e-3)


def test_the_graph_holds_no_activations():
    def bytes_held(prior: Prior) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = image(1, 3, 160, 160).requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prior(x, 0.1)
        return sum(kept.values())

    assert bytes_held(Tiled(small(), 80)) < 0.1 * bytes_held(small())


@pytest.mark.parametrize(
    ("solver", "kind"),
    [(DDRM(steps=5), "mask"), (DDRM(steps=5), "blur"), (DPS(steps=3), "blur")],
)
def test_a_whole_run_is_the_untiled_one(solver, kind):
    prior, shape = small(), (3, 60, 92)
    operator = Mask(random_mask(shape, 0.5), shape) if kind == "mask" else Blur(torch.ones(5, 5) / 25, shape)
    likelihood = Likelihood(operator(image(1, *shape))[0], operator, GaussianNoise(0.05))
    whole, tiled = (
        sample(solver, likelihood, which, draws=2, micro_batch=2, seed=3, progress=False).draws
        for which in (prior, Tiled(prior, 80))
    )
    assert float((tiled - whole).square().mean().sqrt()) < 1e-3 * float(whole.std())


def test_the_record_names_tile_and_overlap():
    told = describe(Tiled(small(), 90, 15))
    assert (told["name"], told["tile"], told["overlap"]) == ("Tiled", 88, 16)
    assert told["inner"] == describe(small())
    assert told["sha256"] == told["inner"]["sha256"]


def test_it_moves_with_its_prior():
    tiled = Tiled(small(), 90, 15)
    assert tiled.to("cpu") is tiled
    moved = tiled.to(precision="float64")
    assert (moved.prior.precision, moved.tile, moved.overlap) == ("float64", 88, 16)
    assert tiled.to("meta").prior.network.head.weight.device.type == "meta"


def test_gray_images_go_through_a_tiled_colour_prior():
    prior, x = small(), image(1, 1, 100, 90)
    whole = match_channels(prior, 1)(x, 0.1)
    torch.testing.assert_close(match_channels(Tiled(prior, 76), 1)(x, 0.1), whole, rtol=0, atol=2e-5)


def stack(widths: list[int]) -> nn.Module:
    return nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)))


@pytest.mark.parametrize("kind", ["dncnn", "ffdnet", "drunet", "colour through gray"])
def test_the_reach_of_the_other_networks_is_the_one_they_declare(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "ffdnet":
            prior: Prior = FFDNet(stack([5, 6, 6, 4]), channels=1, sigma_range=(0, 1), precision="float64")
        elif kind == "drunet":
            prior = DRUNet(DRUNetwork(1, [2, 2, 2, 2], 1), channels=1, sigma_range=(0, 1), precision="float64")
            for parameter in prior.network.parameters():
                # Positive throughout, so that no ReLU hides a pixel.
                parameter.data.abs_()
            prior = prior.to(precision="float32").to(precision="float64")
        else:
            prior = DnCNN(stack([1, 6, 6, 1]), channels=1, sigma_range=(0, 1), precision="float64")
    if kind == "colour through gray":
        prior = ColourThroughGray(prior)
    radius, stride = prior.receptive_radius, prior.stride
    assert (radius, stride) == {"dncnn": (3, 1), "ffdnet": (7, 2), "drunet": (60, 8)}.get(kind, (3, 1))
    at, side = stride * (radius // stride + 1), 2 * radius + 4 * stride
    farthest = 0
    for offset in range(stride):
        x = image(1, prior.channels, side, side).double().requires_grad_(True)
        (slope,) = torch.autograd.grad(prior(x, 0.1)[0, 0, at + offset, at + offset], x)
        reach = (slope.abs().sum((0, 1)).nonzero() - (at + offset)).abs().max()
        farthest = max(farthest, int(reach))
    assert radius - stride < farthest <= radius
    x = image(1, prior.channels, 2 * side, side).double()
    torch.testing.assert_close(Tiled(prior, 4 * radius)(x, 0.1), prior(x, 0.1), rtol=1e-12, atol=1e-12)


def far(x: Tensor, sigma: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Tiled(far), TypeError, "Tiled takes a prior, got function: make one with priors.load or as_prior."),
        (lambda: Tiled(Tiled(small())), ValueError, "diffusion in tiles is in tiles already"),
        (lambda: Tiled(match_channels(small(), 1)), ValueError, "tile the colour prior and adapt that"),
        (lambda: Tiled(load("tv")), ValueError, "How far tv looks is not known: give Tiled an overlap"),
        (lambda: Tiled(FunctionPrior(far)), ValueError, "How far far looks is not known: give Tiled an overlap"),
        (lambda: Tiled(small(), 100.5), TypeError, "tile is 100.5: expected a whole number of pixels."),
        (lambda: Tiled(small(), True), TypeError, "tile is True: expected a whole number of pixels."),
        (lambda: Tiled(small(), 0), ValueError, "tile is 0: expected 1 or more, in pixels."),
        (lambda: Tiled(small(), overlap="8"), TypeError, "overlap is '8': expected a whole number of pixels."),
        (lambda: Tiled(small(), overlap=-1), ValueError, "overlap is -1: expected 0 or more, in pixels."),
        (
            lambda: Tiled(small(), 64),
            ValueError,
            "tile is 64 pixels, which an overlap of 36 on both sides uses up: expected 76 or more, or a smaller",
        ),
    ],
)
def test_wrong_use_is_refused_in_a_sentence(make, error, says):
    with pytest.raises(error, match=re.escape(says)):
        make()


def test_the_smallest_tile_that_is_accepted_works():
    assert Tiled(small(), 76).tile == 76
    with pytest.raises(ValueError, match="expected 76 or more"):
        Tiled(small(), 75)


def test_tiles_are_for_large_images_and_for_priors_that_say_how_far_they_look():
    prior, large, at_most = small(), (3, 1024, 1025), (3, 1024, 1024)
    tiled = in_tiles(prior, "auto", large)
    assert isinstance(tiled, Tiled)
    assert (tiled.tile, tiled.overlap) == (704, 36)
    assert in_tiles(tiled, "auto", large) is tiled
    assert in_tiles(prior, "auto", at_most) is prior
    assert in_tiles(prior, "off", large) is prior
    assert in_tiles(prior, 100, at_most).tile == 100
    tv = load("tv")
    assert in_tiles(tv, "auto", large) is tv
    with pytest.raises(ValueError, match="How far tv looks is not known"):
        in_tiles(tv, 100, large)
    with pytest.raises(ValueError, match="tile is 'on': expected a whole number of pixels, 'auto' or 'off'"):
        in_tiles(prior, "on", large)


def test_a_far_looking_prior_gets_tiles_four_times_its_overlap():
    assert (Tiled(small(), overlap=200).tile, Tiled(small(), overlap=100).tile) == (800, 704)


def test_restore_says_its_tiles_in_the_record():
    noisy = image(1, 3, 40, 100)[0].permute(1, 2, 0).numpy()
    settings = {"sigma": 0.1, "prior": small(), "draws": 1, "progress": False, "solver_options": {"steps": 2}}
    record = restore(noisy, tile=80, **settings).posterior.record
    assert (record["prior"]["name"], record["prior"]["tile"], record["prior"]["overlap"]) == ("Tiled", 80, 36)
    gray = restore(noisy[..., 0], tile=80, **settings).posterior.record
    assert gray["prior"]["inner"]["tile"] == 80
    assert restore(noisy, **settings).posterior.record["prior"]["name"] == "DiffusionPrior"


def test_the_command_takes_tiles(tmp_path):
    write_image(tmp_path / "in.png", image(3, 30, 300))
    words = ["restore", tmp_path / "in.png", "--operator", "denoise", "--sigma", 0.1, "--draws", 1]
    words += ["--set", "solver.steps=2"]
    assert main([str(word) for word in [*words, "--tile", 288, "--out", tmp_path / "out"]]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert (record["prior"]["tile"], record["settings"]["tile"]) == (288, "288")
    assert main([str(word) for word in [*words, "--tile", "288.5", "--out", tmp_path / "none"]]) == 2
    assert not (tmp_path / "none").exists()
