"""Samplers against the schedulers of diffusers: one noise predictor, the same noise, the same image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff.priors import FunctionPrior
from invdiff.schedule import Discrete
from invdiff.solvers import DDIM, DDPM, DPMpp2M, DPMppSDE, Heun, PriorSampler

diffusers = pytest.importorskip("diffusers", reason="the development dependency diffusers is not installed")

# Its schedulers read torch tensors by numpy in a way that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 3, 8, 8)
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESS = Discrete.from_betas(BETAS)
CONFIG = {"trained_betas": BETAS.float().numpy(), "num_train_timesteps": 1000}


class NoisePredictor:
    """A small convolution network with random weights that depends on time, near the predictor of a Gaussian prior."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = (torch.randn(a, b, 3, 3, generator=generator) / 9 for a, b in ((8, 3), (3, 8)))

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """eps from x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps and the time 0 to 999."""
        hidden = torch.tanh(torch.nn.functional.conv2d(x, self.first, padding=1) + t / 1000)
        share = float(PROCESS.alpha_bar(t))
        return (1 - share) ** 0.5 * x + 0.3 * share**0.5 * torch.nn.functional.conv2d(hidden, self.last, padding=1)


class Noise:
    """The same normal numbers, in the same order, for both sides."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)


def prior(network: NoisePredictor) -> FunctionPrior:
    """The network in the prior slot: images in [0, 1], sigma half that of [-1, 1]."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = 2 * float(sigma)
        t = float(PROCESS.time(level))
        centred = 2 * x - 1
        return (centred - level * network(centred / (1 + level**2) ** 0.5, t) + 1) / 2

    return FunctionPrior(denoise, sigma_range=(0.0, 100.0))


def ours(solver: PriorSampler, start: Tensor) -> Tensor:
    """The solver's image from the noise `start`, that of a variance-preserving process at the solver's first level."""
    assert solver.sigmas is not None
    level = 2 * solver.sigmas[0]
    x = (start * (1 + level**2) ** 0.5 + 1) / 2
    for iterate in solver.iterate(None, prior(NoisePredictor()), x, Noise()):
        x = iterate
    return 2 * x - 1


def theirs(scheduler, start: Tensor, **options) -> Tensor:
    network, x = NoisePredictor(), start
    generator = torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x, generator=generator, **options).prev_sample
    return x


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def sigmas(scheduler) -> tuple[float, ...]:
    """The noise levels of its time steps, in image units."""
    return tuple(float(PROCESS.sigma(int(t))) / 2 for t in scheduler.timesteps)


def close(solver: PriorSampler, expected: Tensor) -> None:
    found = ours(solver, start())
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [50, 1000])
def test_ddpm(steps, variance):
    scheduler = diffusers.DDPMScheduler(**CONFIG, variance_type=f"fixed_{variance}", clip_sample=False)
    scheduler.set_timesteps(steps)
    close(DDPM(sigmas=sigmas(scheduler), variance=variance), theirs(scheduler, start()))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [20, 100])
def test_ddim(steps, eta):
    scheduler = diffusers.DDIMScheduler(**CONFIG, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    close(DDIM(sigmas=sigmas(scheduler), eta=eta), theirs(scheduler, start(), eta=eta))


@pytest.mark.parametrize(("kind", "solver"), [("dpmsolver++", DPMpp2M), ("sde-dpmsolver++", DPMppSDE)])
@pytest.mark.parametrize("steps", [8, 30])
def test_dpm_solver(steps, kind, solver):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type=kind, solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    close(solver(sigmas=sigmas(scheduler)), theirs(scheduler, start()))


def test_heun():
    scheduler = diffusers.HeunDiscreteScheduler(**CONFIG)
    scheduler.set_timesteps(20)
    levels = scheduler.sigmas.double()
    solver = Heun(sigmas=tuple((levels[:-1].unique().flip(0)[:20] / 2).tolist()))
    network = NoisePredictor()
    x = start() * float((1 + levels[0] ** 2) ** 0.5)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
    close(solver, x)
