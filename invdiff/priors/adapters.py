"""Denoisers of deepinv in the prior slot, and ours in deepinv's."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invdiff.priors.base import FunctionPrior, Prior
from invdiff.priors.weights import fill, load_state_dict

if TYPE_CHECKING:
    from deepinv.models import Denoiser as DeepinvDenoiser

__all__ = ["DeepinvPrior", "from_deepinv", "load_deepinv", "to_deepinv"]

# Levels that the published weights were trained for, image units; classical methods serve any. The diffusion networks
# reach EDM's 0.002 to 80 and DDPM's 0.01 to 157 of images in [-1, 1].
_TRAINED = {
    "ADMUNet": (0.001, 40.0),
    "DRUNet": (0.0, 50 / 255),
    "DiffUNet": (0.005, 78.0),
    "FFDNet": (0.0, 75 / 255),
    "GSDRUNet": (0.0, 50 / 255),
    "NCSNpp": (0.001, 40.0),
    "SCUNet": (0.0, 50 / 255),
}
_CLASSICAL = ("BM3D", "BilateralFilter", "MedianFilter", "TGVDenoiser", "TVDenoiser", "WaveletDenoiser")
_CLASSICAL_RANGE = (0.0, 1.0)


class DeepinvPrior(FunctionPrior):
    """A denoiser of deepinv in the prior slot.

    A network receives the whole batch. A denoiser without parameters works on one image at a time, on a fresh copy of
    itself: in deepinv 0.5.0 `TVDenoiser` stops by a norm over the whole batch and starts from its last result, so that
    an image would depend on its neighbours and on earlier calls.
    """

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.differentiable:
            x = x.detach()
        if any(True for _ in self.function.parameters()):  # type: ignore[attr-defined]
            return super().denoise(x, sigma)
        images = [copy.deepcopy(self.function)(x[k : k + 1], sigma[k : k + 1].contiguous()) for k in range(len(x))]
        return torch.cat(images) if images else x.clone()


def from_deepinv(
    denoiser: DeepinvDenoiser,
    *,
    sigma_range: tuple[float, float] | None = None,
    channels: int | None = None,
    differentiable: bool = True,
) -> Prior:
    """Return a prior that calls a denoiser of deepinv, `denoiser(x, sigma)` with sigma of shape (b,).

    Args:
        denoiser: the deepinv module, which is put into evaluation mode.
        sigma_range: (lowest, highest) noise level it was trained for; known for DRUNet, GSDRUNet, SCUNet and FFDNet
            with published weights (up to 50/255, FFDNet 75/255), for the diffusion networks ADMUNet and NCSNpp (0.001
            to 40) and DiffUNet (0.005 to 78), and 0 to 1 for classical methods.
        channels: image channels; None for any.
        differentiable: whether autograd can go through it.

    Raises:
        TypeError: denoiser is no torch module.
        ValueError: the range is not known and not given.
    """
    if not isinstance(denoiser, nn.Module):
        raise TypeError(f"from_deepinv takes a deepinv denoiser (a torch module), got {type(denoiser).__name__}.")
    kind = type(denoiser).__name__
    if sigma_range is None:
        if kind in _TRAINED:
            sigma_range = _TRAINED[kind]
        elif kind in _CLASSICAL:
            sigma_range = _CLASSICAL_RANGE
        else:
            raise ValueError(
                f"The noise levels that {kind} was trained for are not known here; give them as "
                f"sigma_range=(lowest, highest) in units of the image."
            )
    if kind in ("BM3D", "MedianFilter"):
        differentiable = False
    return DeepinvPrior(
        denoiser.eval(),
        name=f"deepinv:{kind}",
        sigma_range=sigma_range,
        channels=channels,
        differentiable=differentiable,
        per_member=True,
    )


def load_deepinv(
    name: str,
    *,
    sigma_range: tuple[float, float] | None = None,
    channels: int | None = None,
    pretrained: str | None = None,
    **options: Any,
) -> Prior:
    """Construct `deepinv.models.NAME` and put it in the prior slot.

    Args:
        name: a class of `deepinv.models`.
        sigma_range: as in `from_deepinv`.
        channels: as in `from_deepinv`.
        pretrained: a file of weights, read without running code from it; or "download", which deepinv fetches from its
            own site (nothing is fetched otherwise). None leaves a network at random weights.
        options: keyword arguments of the class.

    Raises:
        ValueError: deepinv has no such model, it does not take the options, or the weights are refused.
        FileNotFoundError: `pretrained` is not a file.
    """
    import difflib
    import pickle

    import deepinv

    found = getattr(deepinv.models, name, None)
    if not (isinstance(found, type) and issubclass(found, deepinv.models.Denoiser)):
        known = [
            n for n, m in vars(deepinv.models).items() if isinstance(m, type) and issubclass(m, deepinv.models.Denoiser)
        ]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}."
        raise ValueError(f"deepinv.models has no denoiser {name!r}; {hint}")
    import inspect

    if "pretrained" in inspect.signature(found).parameters:
        options["pretrained"] = pretrained if pretrained == "download" else None
    elif pretrained is not None:
        raise ValueError(f"deepinv.models.{name} takes no weights; leave pretrained out.")
    try:
        # Layers draw their first weights from the global random state; the caller's draws must not depend on that.
        with torch.random.fork_rng(devices=[]), _weights_only():
            model = found(**options)
    except TypeError as error:
        raise ValueError(f"deepinv.models.{name} cannot be built from these options: {error}.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"What deepinv downloaded for {name} holds pickled Python objects, and loading them would run code from "
            f"the file; give a file of weights as pretrained=FILE."
        ) from error
    if pretrained is not None and pretrained != "download":
        fill(model, load_state_dict(pretrained), pretrained)
    elif pretrained is None and any(True for _ in model.parameters()):
        warnings.warn(
            f"deepinv:{name} has random weights and will not denoise; give the file of its weights as pretrained=FILE.",
            stacklevel=3,
        )
    return from_deepinv(model, sigma_range=sigma_range, channels=channels)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Inside, torch reads weights only, whatever deepinv asks of it: its downloads are unpickled otherwise.

    torch has no other switch than the environment, which all threads share: one that loads meanwhile is held to weights
    only as well, which errs on the safe side.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def to_deepinv(prior: Prior) -> DeepinvDenoiser:
    """Return a deepinv `Denoiser` that calls this prior, for use inside deepinv's algorithms.

    Its sigma may be a number, a scalar tensor, (b,) or (b, 1, 1, 1).

    Raises:
        TypeError: prior is not a `Prior`; use `as_prior` first.
    """
    from deepinv.models import Denoiser

    if not isinstance(prior, Prior):
        raise TypeError(f"to_deepinv takes a Prior, got {type(prior).__name__}; wrap it with as_prior first.")

    class FromInvdiff(Denoiser):  # type: ignore[misc]
        """An invdiff prior as a deepinv denoiser."""

        def __init__(self, held: Prior) -> None:
            super().__init__()
            self.prior = held
            self.register_buffer("place", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
            level = sigma.reshape(-1).to(x) if isinstance(sigma, Tensor) else float(sigma)
            return self.prior(x, level)

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            # .to(), .cuda() and .double() reach modules and buffers; the prior is neither and follows the buffer.
            before = self._buffers.get("place")
            super()._apply(fn, recurse)
            after = self._buffers.get("place")
            if before is not None and after is not None:
                self.prior = self.prior.to(
                    device=after.device if after.device != before.device else None,
                    dtype=after.dtype if after.dtype != before.dtype else None,
                )
            return self

    return FromInvdiff(prior)
