"""Restore images through a known degradation y = A x + n, and say how sure the result is."""

from __future__ import annotations

from .likelihood import Likelihood
from .posterior import Posterior
from .restoration import Restoration, restore
from .sampling import sample

__all__ = ["Likelihood", "Posterior", "Restoration", "restore", "sample"]
__version__ = "0.1.0"
