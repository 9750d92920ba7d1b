"""Forward operators: the A of y = A x + n, with the adjoint of every linear one and the SVD where it has a closed form.

Images are batches (b, *in_shape), measurements (b, *out_shape), in float32 or float64, on any device.

    A = Blur(gaussian_psf(2.0), (3, 256, 256))      A(x), A @ x         apply
    B = Mask(random_mask((3, 256, 256), 0.3), ...)  A.T @ y             adjoint
                                                    A @ B, 2 * A, A + B, stack(A, B)
                                                    A.pinv(y)           Moore-Penrose inverse

`Spectral` operators (Identity, Mask, circular Blur, Downsample, Grayscale, Matrix, Grayscale @ any of the spatial
ones) know their SVD; `checks` holds the tests by which every operator here is judged and yours can be.
"""

if __name__ != "invdiff.operators":
    raise ImportError(
        f"The operators of invdiff were imported as {__name__!r}: import them as invdiff.operators instead."
    )

from . import checks
from .adapters import from_function, from_scipy
from .base import LinearOperator, Operator
from .blur import Blur
from .color import Grayscale
from .compose import stack
from .deepinv_adapters import from_deepinv, to_deepinv
from .downsample import Downsample
from .identity import Identity
from .linalg import CGResult, conjugate_gradient
from .mask import Mask, bayer_mask, box_mask, half_mask, random_mask, text_mask
from .matrix import Matrix
from .psf import disk_psf, gaussian_psf, load_psf, motion_psf, uniform_psf
from .spectral import Spectral

__all__ = [
    "Blur",
    "CGResult",
    "Downsample",
    "Grayscale",
    "Identity",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Operator",
    "Spectral",
    "bayer_mask",
    "box_mask",
    "checks",
    "conjugate_gradient",
    "disk_psf",
    "from_deepinv",
    "from_function",
    "from_scipy",
    "gaussian_psf",
    "half_mask",
    "load_psf",
    "motion_psf",
    "random_mask",
    "stack",
    "text_mask",
    "to_deepinv",
    "uniform_psf",
]
