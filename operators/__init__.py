"""Forward operators."""

if __name__ != "invdiff.operators":
    raise ImportError(
        f"The operators of invdiff were imported as {__name__!r}: import them as invdiff.operators instead."
    )

from .base import LinearOperator, Operator
from .linalg import CGResult, conjugate_gradient
from .spectral import Spectral

__all__ = ["CGResult", "LinearOperator", "Operator", "Spectral", "conjugate_gradient"]
