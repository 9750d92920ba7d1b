"""Priors: denoisers `(x, sigma) -> estimate of x0`, from a Gaussian blur to a diffusion network.

`load(name)` gives every prior by its name and `names()` lists them. Submodules are imported when something of theirs is
first used, so that `import invdiff` costs no more than torch.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from invdiff.priors.base import Denoiser, FunctionPrior, Prior, as_prior

if TYPE_CHECKING:
    from invdiff.priors.adapters import from_deepinv, to_deepinv
    from invdiff.priors.adm import load_adm
    from invdiff.priors.analytic import GaussianMixturePrior, GaussianPrior
    from invdiff.priors.bm3d import BM3D
    from invdiff.priors.channels import match_channels
    from invdiff.priors.cnn import DnCNN, DRUNet, FFDNet
    from invdiff.priors.diffusers_adapter import from_diffusers
    from invdiff.priors.diffusion import DiffusionPrior, load_natural
    from invdiff.priors.network import from_network
    from invdiff.priors.nlm import NonLocalMeans
    from invdiff.priors.smooth import Bilateral, GaussianBlur, Median
    from invdiff.priors.tiled import Tiled
    from invdiff.priors.tv import TV
    from invdiff.priors.wavelet import Wavelet
    from invdiff.priors.weights import load_state_dict

__all__ = [
    "BM3D",
    "TV",
    "Bilateral",
    "DRUNet",
    "Denoiser",
    "DiffusionPrior",
    "DnCNN",
    "FFDNet",
    "FunctionPrior",
    "GaussianBlur",
    "GaussianMixturePrior",
    "GaussianPrior",
    "Median",
    "NonLocalMeans",
    "Prior",
    "Tiled",
    "Wavelet",
    "as_prior",
    "from_deepinv",
    "from_diffusers",
    "from_network",
    "load",
    "load_adm",
    "load_natural",
    "load_state_dict",
    "match_channels",
    "names",
    "to_deepinv",
]

_HOME = {
    "BM3D": "bm3d",
    "Bilateral": "smooth",
    "DRUNet": "cnn",
    "DiffusionPrior": "diffusion",
    "DnCNN": "cnn",
    "FFDNet": "cnn",
    "GaussianBlur": "smooth",
    "GaussianMixturePrior": "analytic",
    "GaussianPrior": "analytic",
    "Median": "smooth",
    "NonLocalMeans": "nlm",
    "TV": "tv",
    "Tiled": "tiled",
    "Wavelet": "wavelet",
    "from_deepinv": "adapters",
    "from_diffusers": "diffusers_adapter",
    "from_network": "network",
    "load_adm": "adm",
    "load_natural": "diffusion",
    "load_state_dict": "weights",
    "match_channels": "channels",
    "to_deepinv": "adapters",
}

# name -> (what `invdiff list` prints, submodule, callable); a name that ends in ":" takes what follows as its argument.
_NAMES = {
    "natural": ("the shipped diffusion prior of natural colour images", "diffusion", "load_natural"),
    "gaussian": ("Gaussian blur, the weakest smoother", "smooth", "GaussianBlur"),
    "median": ("median of a window that grows with the noise", "smooth", "Median"),
    "bilateral": ("bilateral filter (Tomasi and Manduchi 1998)", "smooth", "Bilateral"),
    "wavelet": ("cycle-spun wavelet thresholding (Coifman and Donoho 1995)", "wavelet", "Wavelet"),
    "tv": ("total variation (Rudin, Osher and Fatemi 1992)", "tv", "TV"),
    "nlm": ("non-local means (Buades, Coll and Morel 2005)", "nlm", "NonLocalMeans"),
    "bm3d": ("BM3D (Dabov et al. 2007), from the optional package bm3d", "bm3d", "BM3D"),
    "natural:PATH": ("a diffusion prior of your own training, from the file PATH", "diffusion", "load_natural"),
    "adm:PATH": ("a guided-diffusion (ADM) network with the weights in PATH", "adm", "load_adm"),
    "dncnn:PATH": ("DnCNN (Zhang et al. 2017) with the weights in PATH", "cnn", "DnCNN.from_file"),
    "ffdnet:PATH": ("FFDNet (Zhang et al. 2018) with the weights in PATH", "cnn", "FFDNet.from_file"),
    "drunet:PATH": ("DRUNet (Zhang et al. 2021) with the weights in PATH", "cnn", "DRUNet.from_file"),
    "diffusers:DIR": ("a diffusion model in the folder DIR of diffusers", "diffusers_adapter", "from_diffusers"),
    "deepinv:NAME": (
        "the denoiser NAME of the package deepinv, for example deepinv:DRUNet",
        "adapters",
        "load_deepinv",
    ),
}


def names() -> dict[str, str]:
    """One line of description for every name that `load` takes.

    >>> names()["tv"]
    'total variation (Rudin, Osher and Fatemi 1992)'
    """
    return {name: entry[0] for name, entry in _NAMES.items()}


def load(name: str, **options: Any) -> Prior:
    """Return the prior of that name.

    Args:
        name: one of `names()`, with a file in place of PATH or a class of `deepinv.models` in place of NAME; upper and
            lower case are the same before the colon.
        options: keyword arguments of the prior's constructor.

    Raises:
        ValueError: no prior has that name, or its argument is missing or unwanted.

    >>> load("tv").sigma_range
    (0.0, 1.0)
    """
    if not isinstance(name, str):
        raise TypeError(
            f"The name of a prior must be a string, got {type(name).__name__}; pass a prior itself directly."
        )
    # A file name after the colon keeps its case.
    kind, colon, argument = name.partition(":")
    kind = kind.lower()
    keys: dict[str, list[str]] = {}
    for key in _NAMES:
        keys.setdefault(key.partition(":")[0], []).append(key)
    if kind not in keys:
        near = difflib.get_close_matches(kind, keys, n=1, cutoff=0.5)
        hint = f"did you mean {keys[near[0]][0]!r}?" if near else f"choose from {', '.join(_NAMES)}."
        raise ValueError(f"No prior is named {name!r}; {hint}")
    # "natural" is a name both with and without a file.
    key = next((key for key in keys[kind] if (":" in key) == bool(colon)), keys[kind][0])
    wants = key.partition(":")[2]
    if wants and not argument:
        raise ValueError(f"The prior {kind!r} needs an argument: write {key!r} with {_ARGUMENTS[wants]}.")
    if colon and not wants:
        raise ValueError(f"The prior {kind!r} takes no argument after a colon, got {name!r}; write {kind!r}.")
    _, module, path = _NAMES[key]
    target: Any = importlib.import_module(f"invdiff.priors.{module}")
    for part in path.split("."):
        target = getattr(target, part)
    prior: Prior = target(argument, **options) if wants else target(**options)
    return prior


_ARGUMENTS = {
    "PATH": "the file of weights in place of PATH",
    "DIR": "the folder in place of DIR",
    "NAME": "a class of deepinv.models in place of NAME",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"invdiff.priors.{_HOME[name]}"), name)
    raise AttributeError(f"module 'invdiff.priors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
