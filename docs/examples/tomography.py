"""Tomography from few angles: your own scipy.sparse matrix, an ensemble kept in a folder, and a map of what is unsure.

A third of the directions is missing, so that edges along them are unknown: the map shows where. The same call again
reads the draws from the folder, and with more draws it goes on.
"""

import numpy as np
from scipy.sparse import coo_matrix, vstack
from skimage import data, transform

from invdiff import plots, restore
from invdiff.operators import from_scipy

SIDE, BINS, SIGMA = 32, 48, 0.01


def projection(angle: float) -> coo_matrix:
    """Parallel rays: the centre of each pixel falls between two bins of the detector, which share it."""
    rows, columns = np.mgrid[:SIDE, :SIDE].reshape(2, -1) - (SIDE - 1) / 2
    bins, share = np.divmod(columns * np.cos(angle) - rows * np.sin(angle) + BINS / 2, 1)
    where = np.r_[bins, bins + 1].astype(int), np.tile(np.arange(SIDE**2), 2)
    return coo_matrix((np.r_[1 - share, share] / SIDE, where), (BINS, SIDE**2))


angles = np.deg2rad(np.arange(0, 120, 6))
matrix = vstack([projection(angle) for angle in angles])
radon = from_scipy(matrix, in_shape=(1, SIDE, SIDE), out_shape=(len(angles), BINS))

phantom = transform.resize(data.shepp_logan_phantom(), (SIDE, SIDE), anti_aliasing=True)
sinogram = (matrix @ phantom.ravel()).reshape(radon.out_shape)
sinogram += np.random.default_rng(0).normal(0, SIGMA, sinogram.shape)

steps = {"steps": 15}  # half of what restore takes by itself, for a quick look
result = restore(sinogram, radon, sigma=SIGMA, truth=phantom, draws=20, store="tomography.zarr", solver_options=steps)
low, high = (bound.numpy() for bound in result.posterior.interval(0.9))
inside = np.mean((low <= phantom) & (phantom <= high))
plots.uncertainty_map(result.posterior).savefig("tomography.png")
print(f"{result.metrics['psnr']:.1f} dB; {inside:.0%} of the pixels lie in their 90 % intervals: see tomography.png")
