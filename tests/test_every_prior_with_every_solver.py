"""Every prior with every solver runs, or a sentence says why not; on CUDA it agrees with the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from invdiff import Likelihood, priors, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask, from_function, gaussian_psf, random_mask
from invdiff.priors.adm import ADM
from invdiff.priors.cnn import DRUNetwork

SHAPE = (3, 24, 20)
FILES = {
    "dncnn:PATH": "weights/kair/dncnn_color_blind.pth",
    "ffdnet:PATH": "weights/kair/ffdnet_color.pth",
}


@pytest.fixture
def random_drunet(tmp_path):
    """A small DRUNet whose random weights keep the image's scale, in a file under the published names."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in DRUNetwork(3, [4, 6, 8, 10], 1).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5 for key, shape in shapes.items()}
    torch.save(state, tmp_path / "drunet.pth")
    return tmp_path / "drunet.pth"


@pytest.fixture
def random_adm(tmp_path):
    """A small guided-diffusion U-Net as it is before training, in a file under the published names."""
    with torch.random.fork_rng(devices=[]):
        network = ADM(width=32, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=32)
    torch.save(network.state_dict(), tmp_path / "adm.pt")
    return tmp_path / "adm.pt"


@pytest.fixture
def random_pipeline(tmp_path):
    """A small random network of diffusers with its scheduler, in a folder."""
    diffusers = pytest.importorskip("diffusers", reason="the optional package diffusers is not installed")
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks
        )
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def load(name: str, request) -> priors.Prior:
    kind, _, rest = name.partition(":")
    if name == "bm3d":
        pytest.importorskip("bm3d", reason="the optional package bm3d is not installed")
    if rest == "PATH":
        if kind == "drunet":
            return priors.load(f"drunet:{request.getfixturevalue('random_drunet')}")
        if kind == "adm":
            return priors.load(f"adm:{request.getfixturevalue('random_adm')}", head_channels=32, self_test=False)
        if kind == "natural":
            return priors.load(f"natural:{Path(priors.__file__).parent / 'natural.safetensors'}")
        return priors.load(f"{kind}:{request.getfixturevalue('data') / FILES[name]}")
    if kind == "diffusers":
        return priors.load(f"diffusers:{request.getfixturevalue('random_pipeline')}", self_test=False)
    if kind == "deepinv":
        return priors.load("deepinv:TVDenoiser", sigma_range=(0.0, 1.0))
    return priors.load(name)


def likelihood() -> Likelihood:
    operator = Mask(random_mask(SHAPE, 0.7, seed=0), SHAPE)
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return Likelihood(operator(x[None])[0], operator, GaussianNoise(0.05))


def problem(name: str) -> Likelihood:
    """What the solver takes: the mean of all values where it serves measurements of few values alone."""
    if name != "kps_cloud":
        return likelihood()
    return Likelihood(
        torch.tensor([0.3, 0.5, 0.7]), from_function(lambda x: x.mean((2, 3)), SHAPE), GaussianNoise(0.05)
    )


CHEAP: dict[str, dict[str, int]] = {
    "daps": {"ode_steps": 1, "langevin_steps": 5},
    "pnpdm": {"prior_steps": 2},
    "kps": {"products": 2},
    "kps_cloud": {"particles": 2, "depth": 1, "steps": 2},
}


def quick(name: str):
    solver = solvers.load(name)
    count = {"steps": 4} if solver.stochastic else {"iterations": 3}
    return dataclasses.replace(solver, **count | CHEAP.get(name, {}))


@pytest.mark.parametrize("solver", sorted(solvers.names()))
@pytest.mark.parametrize("prior", sorted(priors.names()))
def test_runs_or_says_why_not(prior, solver, request):
    slot = load(prior, request)
    alone = isinstance(quick(solver), solvers.PriorSampler)
    try:
        result = sample(quick(solver), None if alone else problem(solver), slot, in_shape=SHAPE, micro_batch=1)
    except solvers.CapabilityError as error:
        if alone:
            assert slot.sigma_range[1] < 10
            assert "which serves noise levels from" in str(error)
            return
        assert not slot.differentiable
        assert "Use KPS" in str(error)
        return
    assert torch.isfinite(result.draws).all()
    assert result.draws.shape == (1, *SHAPE)
    if not quick(solver).stochastic:
        assert result.label == "point estimate"
    elif slot.sigma_range[1] > 10:
        assert result.label == "uncalibrated spread"
    else:
        assert result.label == "heuristic spread"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", sorted(solvers.names()))
@pytest.mark.parametrize("prior", ["tv", "gaussian", "natural"])
def test_cuda_agrees_with_the_cpu(prior, solver):
    slot = priors.load(prior, precision="float32") if prior == "natural" else priors.load(prior)
    blurred = Blur(gaussian_psf(1.0, 5), SHAPE)
    given = Likelihood(
        blurred(torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(1)))[0], blurred, GaussianNoise(0.05)
    )
    alone = isinstance(quick(solver), solvers.PriorSampler)
    if alone and prior != "natural":
        pytest.skip("draws from the prior alone need a diffusion prior")
    problems = (None,) if alone else (problem(solver),) if solver == "kps_cloud" else (likelihood(), given)
    for one in problems:
        both = [
            sample(quick(solver), one, slot, in_shape=SHAPE, micro_batch=2, device=where).draws.cpu()
            for where in ("cpu", "cuda")
        ]
        torch.testing.assert_close(both[1], both[0], atol=5e-3, rtol=0)
