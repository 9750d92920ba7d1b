"""The peers' samplers with our prior, images, operators and noise: deepinv 0.5.0 and azula, as their documents say.

Each entry of `METHODS` builds a callable that makes draws (n, C, H, W). The number of evaluations of the network is the
one asked for wherever the method lets it be chosen. What a peer cannot do is left out, with the reason in `MISSING`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators import Operator, gaussian_psf, random_mask
from invdiff.priors import Prior

Slot = Callable[[Tensor, Any], Tensor]
Draws = Callable[[int], Tensor]
LEVELS = (0.002, 50.0)
TASKS = ("blur", "down4", "inpaint", "gray")
MISSING = {
    ("deepinv", "ddrm", "down4"): "its Downsampling has no singular value decomposition",
    ("deepinv", "ddrm", "gray"): "its DDRM stops with an IndexError, as its Decolorize is an economic decomposition",
}


def physics(task: str, size: int, sigma_y: float) -> Any:
    """deepinv's own operator of the task on 3 x size x size images."""
    import deepinv

    shape, noise = (3, size, size), deepinv.physics.GaussianNoise(sigma_y)
    if task == "blur":
        return deepinv.physics.BlurFFT(shape, filter=gaussian_psf(2.0)[None, None], noise_model=noise)
    if task == "down4":
        return deepinv.physics.Downsampling(
            img_size=shape, filter="bicubic", factor=4, padding="circular", noise_model=noise
        )
    if task == "inpaint":
        # The mask of `benchmarks.restoration`.
        return deepinv.physics.Inpainting(img_size=shape, mask=random_mask(shape, 0.3, seed=0), noise_model=noise)
    return deepinv.physics.Decolorize(channels=3, noise_model=noise)


def denoiser(slot: Slot) -> Any:
    """A denoiser of ours as deepinv's; its samplers hand over float64 images and noise levels of any shape."""
    import deepinv

    class Wrapped(deepinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            # DiffPIR begins at 79, beyond the prior's 50, and ends at 0.
            level = torch.as_tensor(sigma, dtype=torch.float32).flatten()[0].clamp(*LEVELS)
            return slot(x.float(), level).to(x.dtype)

    return Wrapped()


def deepinv(solver: str, task: str, y: Tensor, slot: Slot, sigma_y: float, nfe: int, size: int) -> Draws:
    """deepinv's method for one measurement y (*out_shape), which an ensemble repeats along its batch."""
    import deepinv as dinv

    operator, network = physics(task, size, sigma_y), denoiser(slot)
    if solver == "ddrm":
        method = dinv.sampling.DDRM(network, sigmas=np.linspace(1, 0, nfe))
    elif solver == "diffpir":
        method = dinv.sampling.DiffPIR(network, dinv.optim.L2(), sigma=sigma_y, max_iter=nfe)
    elif solver == "dps":
        method = dinv.sampling.DPS(network, num_steps=nfe)
    else:
        prior = (dinv.optim.PnP if solver == "pnp_hqs" else dinv.optim.RED)(denoiser=network)
        # The annealing of DPIR, which deepinv documents for HQS, stretched over the steps asked for.
        levels = torch.logspace(np.log10(49 / 255), np.log10(sigma_y), nfe)
        if solver == "pnp_hqs":
            settings = {"stepsize": (levels / sigma_y) ** 2 / 0.23, "g_param": levels}
            method = dinv.optim.HQS(dinv.optim.L2(), prior, max_iter=nfe, params_algo=settings)
        else:
            method = dinv.optim.GD(dinv.optim.L2(), prior, lambda_reg=0.2, stepsize=1.0, g_param=0.05, max_iter=nfe)

    def draws(count: int) -> Tensor:
        guided = contextlib.nullcontext() if solver == "dps" else torch.no_grad()
        with guided:
            found: Tensor = method(y.expand(count, *y.shape).clone(), operator)
        return found.detach()

    return draws


def azula(solver: str, operator: Operator, y: Tensor, slot: Slot, sigma_y: float, nfe: int) -> Draws:
    """azula's method for one measurement; it takes any callable as operator, and gets ours."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDPMSampler

    class Wrapped(Denoiser):  # type: ignore[misc]
        schedule = VESchedule(sigma_min=0.002, sigma_max=40.0)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(slot(x_t, self.schedule(t)[1]))

    network, variance = Wrapped(), torch.tensor(sigma_y**2)

    def draws(count: int) -> Tensor:
        # One norm over the whole batch sets azula's DPS step, so that its draws are made one at a time.
        target = y.expand(1 if solver == "dps" else count, *y.shape)
        if solver == "dps":
            sampler = DPSSampler(network, target, operator, steps=nfe, silent=True)
        elif solver == "diffpir":
            sampler = DDPMSampler(DiffPIRDenoiser(network, target, operator, sigma_y**2), steps=nfe, silent=True)
        else:
            guided = MMPSDenoiser(network, target, operator, IsotropicCovariance(variance))
            sampler = DDPMSampler(guided, steps=nfe, silent=True)
        shape = (target.shape[0], *operator.in_shape)
        made = [sampler(sampler.init(shape, mean=0.5, var=0.05)) for _ in range(count // shape[0])]
        return torch.cat(made).detach()

    return draws


def plain(prior: Prior) -> Slot:
    """The prior in float32, channels first, as a network that nobody laid out is run."""
    exact = prior.to(precision="float32")  # type: ignore[call-arg]
    return exact
