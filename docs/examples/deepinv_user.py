"""A deepinv user: physics and denoiser stay as they are, and KPS draws from the posterior that they define.

The physics becomes an operator (with its SVD where it has one), the denoiser a prior. Total variation knows little of
photographs; the second run takes the prior that ships instead, and nothing else changes.
"""

import deepinv
import torch
from skimage.data import astronaut

from invdiff import Likelihood, operators, priors, sample
from invdiff.metrics import psnr
from invdiff.noise import GaussianNoise
from invdiff.solvers import KPS

SHAPE, SIGMA = (3, 32, 32), 0.05
face = torch.from_numpy(astronaut()[60:156:3, 180:276:3]).movedim(2, 0)[None] / 255

physics = deepinv.physics.Inpainting(SHAPE, mask=0.4, rng=torch.Generator().manual_seed(0))
physics.set_noise_model(deepinv.physics.GaussianNoise(SIGMA, rng=torch.Generator().manual_seed(1)))
y = physics(face)
print(f"A_dagger: {psnr(physics.A_dagger(y), face).item():.1f} dB")

A = operators.from_deepinv(physics, SHAPE)
likelihood = Likelihood(y[0], A, GaussianNoise(SIGMA))
smoother = priors.from_deepinv(deepinv.models.TVDenoiser(n_it_max=40))
for prior in (smoother, priors.load("natural")):
    posterior = sample(KPS(steps=10, products=2), likelihood, prior, draws=4, seed=0)
    quality, spread = psnr(posterior.mean()[None], face).item(), posterior.std().mean().item()
    print(f"{prior.name}: {quality:.1f} dB, {posterior.label} {spread:.3f}")
