"""The peers' samplers with our prior, images, operators and noise: deepinv 0.5.0 and azula, as their documents say.

`deepinv` and `azula` build a callable that makes draws (n, C, H, W). What a peer cannot do is left out, with the reason
in `MISSING`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.operators import (
    Identity,
    LinearOperator,
    Mask,
    Operator,
    Spectral,
    gaussian_psf,
    random_mask,
    to_deepinv,
)
from invdiff.priors import Prior

Slot = Callable[[Tensor, Any], Tensor]
Draws = Callable[[int], Tensor]
LEVELS = (0.002, 50.0)
# What `benchmarks.tuning` finds best for deepinv's DPIR, whose documented settings fail where pixels are missing.
TUNED: dict[str, Any] = {"start": 49 / 255, "iterations": 24, "fill": True}
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


def same(operator: Operator, method: str, sigma_y: float) -> Any:
    """An operator of ours inside deepinv, in closed form where its own classes have one; None where DDRM has none."""
    import deepinv

    noise = deepinv.physics.GaussianNoise(sigma_y)
    if method != "ddrm":
        return to_deepinv(operator, noise_model=noise)
    if isinstance(operator, Identity):
        return deepinv.physics.Denoising(noise_model=noise)
    if isinstance(operator, Mask):
        return deepinv.physics.Inpainting(operator.in_shape, mask=operator.singular.float(), noise_model=noise)
    kernel = getattr(operator, "kernel", None)
    if kernel is None or not isinstance(operator, Spectral):
        return None
    made = deepinv.physics.BlurFFT(operator.in_shape, filter=kernel[None, None].float(), noise_model=noise)
    x = torch.rand(1, *operator.in_shape, generator=torch.Generator().manual_seed(0))
    if float((made.A(x) - operator(x)).abs().max()) > 1e-4:
        raise RuntimeError("deepinv's BlurFFT is not the same convolution as ours: compare its kernel's orientation.")
    return made


def denoiser(slot: Slot) -> Any:
    """A denoiser of ours as deepinv's; its samplers hand over float64 images and noise levels of any shape."""
    import deepinv

    class Wrapped(deepinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            # DiffPIR begins at 79, beyond the prior's 50, and ends at 0.
            level = torch.as_tensor(sigma, dtype=torch.float32).flatten()[0].clamp(*LEVELS)
            return slot(x.float(), level).to(x.dtype)

    return Wrapped()


def filled_in(operator: Any, y: Tensor) -> Tensor:
    """A^T y, and in the pixels that A does not see the mean of the others weighted by 1 / distance^4, (b, C, H, W)."""
    seen, image = (operator.A_adjoint(part).double() for part in (torch.ones_like(y), y))
    height, width = image.shape[-2:]
    rows, columns = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None] ** 2 for n in (height, width))
    kernel = torch.fft.rfft2(1 / (rows + columns.T).clamp_min(0.25) ** 2)
    known = (seen > 0).to(image)
    total, weight = (
        torch.fft.irfft2(torch.fft.rfft2(part) * kernel, s=(height, width)) for part in (known * image, known)
    )
    return torch.where(known > 0, image, total / weight).to(y)


def deepinv(
    method: str,
    operator: Any,
    y: Tensor,
    slot: Slot,
    sigma_y: float,
    nfe: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Draws:
    """deepinv's method for one measurement y (*out_shape), which an ensemble repeats along its batch.

    Args:
        method: ddrm, diffpir, dps, dps_annealed (its guidance="annealed"), pigdm, mmps, dpir (its
            `optim.DPIR`), dpir_tuned, pnp_hqs (the same, of as many steps as asked for) or red_gd.
        operator: a deepinv physics with its noise.
        y: the measurement.
        slot: the denoiser.
        sigma_y: of the noise.
        nfe: evaluations of the network; what deepinv documents if left out.
        settings: of dpir_tuned (start: first denoiser strength, iterations, fill: start from `filled_in`); those of
            `TUNED` if left out.
    """
    import deepinv as dinv

    network, sampling = denoiser(slot), dinv.sampling
    chosen = dict(settings or TUNED) if method == "dpir_tuned" else {}
    start = filled_in if chosen.get("fill") else None
    if method == "ddrm":
        made = sampling.DDRM(network, sigmas=np.linspace(1, 0, nfe or 100))
    elif method == "diffpir":
        made = sampling.DiffPIR(network, dinv.optim.L2(), sigma=sigma_y, max_iter=nfe or 100)
    elif method in ("dps", "dps_annealed"):
        # Its samplers of an SDE take one step less than they have times.
        count = nfe + 1 if nfe else 1000
        made = sampling.DPS(network, num_steps=count, guidance="norm" if method == "dps" else "annealed")
    elif method in ("pigdm", "mmps"):
        kind = sampling.PiGDMDataFidelity if method == "pigdm" else sampling.MomentMatchingDataFidelity
        times = torch.linspace(1, 0, nfe + 1 if nfe else 100, dtype=torch.float64)
        made = sampling.PosteriorDiffusion(
            data_fidelity=kind(network),
            denoiser=network,
            sde=sampling.VariancePreservingDiffusion(alpha=1.0, dtype=torch.float64),
            solver=sampling.DDPMSolver(timesteps=times),
        )
    elif method == "dpir" and nfe is None:
        made = dinv.optim.DPIR(sigma=sigma_y, denoiser=network)
    elif method in ("dpir", "dpir_tuned", "pnp_hqs"):
        # The annealing of DPIR, which deepinv documents for HQS, stretched over the steps asked for.
        steps = nfe or chosen.get("iterations", 8)
        levels = torch.logspace(np.log10(chosen.get("start", 49 / 255)), np.log10(sigma_y), steps)
        annealed = {"stepsize": (levels / max(0.01, sigma_y)) ** 2 / 0.23, "g_param": levels}
        prior = dinv.optim.PnP(denoiser=network)
        made = dinv.optim.HQS(dinv.optim.L2(), prior, max_iter=steps, params_algo=annealed)
    else:
        prior = dinv.optim.RED(denoiser=network)
        made = dinv.optim.GD(dinv.optim.L2(), prior, lambda_reg=0.2, stepsize=1.0, g_param=0.05, max_iter=nfe or 100)

    def draws(count: int) -> Tensor:
        with torch.no_grad():
            many = y.expand(count, *y.shape).clone()
            found: Tensor = made(many, operator, init=(start(operator, many),) * 2) if start else made(many, operator)
        return found.detach()

    return draws


def azula(method: str, operator: Operator, y: Tensor, slot: Slot, sigma_y: float, nfe: int | None = None) -> Draws:
    """azula's method for one measurement; it takes any callable as operator, and gets ours.

    Its images are vectors, as its solvers of linear systems take inner products along the last axis alone.

    Args:
        method: dps, diffpir, pigdm, mmps (as documented: one iteration), mmps_5 (five) or tmpd.
        operator, y, slot, sigma_y: as above.
        nfe: evaluations of the network; its 64 steps if left out.
    """
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.guidance.tmpd import TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDPMSampler

    assert isinstance(operator, LinearOperator)
    shape, steps = operator.in_shape, {"steps": nfe or 64, "silent": True}

    class Wrapped(Denoiser):  # type: ignore[misc]
        schedule = VESchedule(sigma_min=0.002, sigma_max=40.0)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(slot(x_t.reshape(-1, *shape), self.schedule(t)[1]).reshape(x_t.shape))

    def forward(v: Tensor) -> Tensor:
        return operator(v.reshape(-1, *shape)).flatten(1)

    def backward(w: Tensor) -> Tensor:
        return operator.pinv(w.reshape(-1, *operator.out_shape)).flatten(1)

    def sampler(target: Tensor) -> Any:
        network = Wrapped()
        if method == "dps":
            # Its zeta of 1 is for images in [-1, 1], of twice our residuals and pixels: a half is the same step here.
            return DPSSampler(network, target, forward, zeta=0.5, **steps)
        if method == "pigdm":
            return PGDMSampler(network, target, forward, backward, eta=1.0, **steps)
        if method == "diffpir":
            return DDPMSampler(DiffPIRDenoiser(network, target, forward, sigma_y**2), **steps)
        if method == "tmpd":
            return DDPMSampler(TMPDenoiser(network, target, forward, sigma_y**2), **steps)
        noise = IsotropicCovariance(torch.tensor(sigma_y**2))
        iterations = 5 if method == "mmps_5" else 1
        return DDPMSampler(MMPSDenoiser(network, target, forward, noise, iterations=iterations), **steps)

    def draws(count: int) -> Tensor:
        # One norm over the whole batch sets azula's DPS step, so that its draws are made one at a time.
        batch = 1 if method == "dps" else count
        made = sampler(y.flatten().expand(batch, -1))
        size = (batch, y.new_empty(shape).numel())
        found = [made(made.init(size, mean=0.5, var=0.05)) for _ in range(count // batch)]
        return torch.cat(found).detach().reshape(count, *shape)

    return draws


def plain(prior: Prior) -> Slot:
    """The prior in float32, channels first, as a network that nobody laid out is run."""
    return prior.to(precision="float32")
