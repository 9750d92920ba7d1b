"""Every prior with every solver runs, or a sentence says why not; on CUDA it agrees with the CPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from invdiff import Likelihood, priors, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask, gaussian_psf, random_mask
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


def load(name: str, request) -> priors.Prior:
    kind, _, rest = name.partition(":")
    if name == "bm3d":
        pytest.importorskip("bm3d", reason="the optional package bm3d is not installed")
    if rest == "PATH":
        if kind == "drunet":
            return priors.load(f"drunet:{request.getfixturevalue('random_drunet')}")
        return priors.load(f"{kind}:{request.getfixturevalue('data') / FILES[name]}")
    if kind == "deepinv":
        return priors.load("deepinv:TVDenoiser", sigma_range=(0.0, 1.0))
    return priors.load(name)


def likelihood() -> Likelihood:
    operator = Mask(random_mask(SHAPE, 0.7, seed=0), SHAPE)
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return Likelihood(operator(x[None])[0], operator, GaussianNoise(0.05))


def quick(name: str):
    solver = solvers.load(name)
    return dataclasses.replace(solver, **({"steps": 4} if solver.stochastic else {"iterations": 3}))


@pytest.mark.parametrize("solver", sorted(solvers.names()))
@pytest.mark.parametrize("prior", sorted(priors.names()))
def test_runs_or_says_why_not(prior, solver, request):
    slot = load(prior, request)
    alone = isinstance(quick(solver), solvers.PriorSampler)
    try:
        result = sample(quick(solver), None if alone else likelihood(), slot, in_shape=SHAPE, micro_batch=1)
    except solvers.CapabilityError as error:
        if alone:
            assert prior != "natural"
            assert "which serves noise levels from" in str(error)
            return
        assert solver == "dps"
        assert not slot.differentiable
        assert "Use DDRM" in str(error)
        return
    assert torch.isfinite(result.draws).all()
    assert result.draws.shape == (1, *SHAPE)
    if not quick(solver).stochastic:
        assert result.label == "point estimate"
    elif prior == "natural":
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
    for problem in (None,) if alone else (likelihood(), given):
        both = [
            sample(quick(solver), problem, slot, in_shape=SHAPE, micro_batch=2, device=where).draws.cpu()
            for where in ("cpu", "cuda")
        ]
        torch.testing.assert_close(both[1], both[0], atol=5e-3, rtol=0)
