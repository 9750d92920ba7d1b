"""Microscopy in scikit-image: uint16 pixels with an offset, a PSF measured from beads, and a threshold that follows.

Photons arrive by chance and the electronics add noise of their own; sigma states both at the mean brightness. The
restored image has the camera's dtype and range, so that the rest of the pipeline stays as it was.
"""

import numpy as np
from scipy.ndimage import convolve
from skimage import data, filters, metrics, transform

from invdiff import restore

DARK, GAIN, READ_NOISE, PHOTONS = 100, 10, 2.0, 400  # grey values, per electron; electrons, those of white
rng = np.random.default_rng(0)


def camera(light: np.ndarray) -> np.ndarray:
    electrons = rng.poisson(PHOTONS * light) + rng.normal(0, READ_NOISE, light.shape)
    return (DARK + GAIN * electrons).clip(0, 65535).astype(np.uint16)


optics = np.outer(*2 * [np.exp(-(np.linspace(-3, 3, 11) ** 2) / 2)]) / 17.4
psf = np.mean([camera(20 * optics) for _ in range(100)], axis=0).clip(DARK) - DARK  # a hundred images of a bead

blobs = data.binary_blobs(192, blob_size_fraction=0.1, volume_fraction=0.3, rng=0).astype(float)
cells = 0.05 + 0.75 * transform.resize(blobs, (48, 48), anti_aliasing=True)
image = camera(convolve(cells, optics))

sigma = np.sqrt((image.mean() - DARK) / GAIN + READ_NOISE**2) / PHOTONS
blur, ends = {"psf": psf, "boundary": "reflect"}, (DARK, DARK + GAIN * PHOTONS)
result = restore(
    image, "blur", operator_options=blur, sigma=sigma, data_range=ends, draws=4, solver_options={"steps": 20}
)

print(result.restored.dtype, result.metrics["chi2"]["verdict"])
for picture in (image, result.restored):
    light = (picture.astype(float) - DARK) / (GAIN * PHOTONS)
    wrong = np.mean((light > filters.threshold_otsu(light)) != (cells > 0.4))
    print(f"{metrics.peak_signal_noise_ratio(cells, light, data_range=1):.1f} dB, {wrong:.1%} of pixels misjudged")
