"""The prior slot: one call `(x, sigma) -> estimate of x0`, whatever stands behind it.

A prior answers the question "x is an image plus white Gaussian noise of standard deviation sigma: what is the image?",

    D(x, sigma) = E[x0 | x0 + sigma * eps = x],        eps ~ N(0, I),

exactly (analytic priors), by training (networks) or as well as a smoother can. Its score follows by Tweedie's formula,
`grad log p_sigma(x) = (D(x, sigma) - x) / sigma**2` (Efron 2011, eq. 2.8), so every prior serves every solver.
Images are float tensors `(b, C, H, W)` in [0, 1] and sigma is in the same units. No prior looks across the batch axis.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["Denoiser", "FunctionPrior", "Prior", "as_prior"]


@runtime_checkable
class Denoiser(Protocol):
    """What a solver needs of a prior: `(x, sigma) -> estimate of x0`, with its honest range of sigma.

    `differentiable` says whether autograd can go through the call. Sigma is a scalar or has shape `(b,)`.
    """

    sigma_range: tuple[float, float]
    differentiable: bool

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor: ...


class Prior(ABC):
    """A denoiser that checks its input: `prior(x, sigma)` is E[x0 | x0 + sigma * eps = x] or an estimate of it.

    A subclass supplies `denoise` and, where they differ from the defaults, the attributes.

    Attributes:
        name: what messages and records call it.
        channels: the number of image channels it takes; None for any.
        sigma_range: the noise levels (lowest, highest) it was trained, fitted or derived for. Above the highest a call
            is refused; below the lowest the lowest is used.
        differentiable: whether autograd can go through `denoise`.
        jacobian_limit: the noise level above which sigma^2 times its Jacobian is not used as the covariance of images
            (by `KPS`). The Jacobians of networks that were measured are neither symmetric nor positive above about 1.
    """

    name: str = "prior"
    channels: int | None = None
    sigma_range: tuple[float, float] = (0.0, math.inf)
    differentiable: bool = True
    jacobian_limit: float = 1.0

    @property
    def receptive_radius(self) -> int | None:
        """Pixels beyond which an input pixel cannot change an output pixel; None where that is not known."""
        return None

    @property
    def stride(self) -> int:
        """An image cut at multiples of this many pixels is treated as the whole image is, away from the cut."""
        return 1

    def __repr__(self) -> str:
        shape = getattr(self, "in_shape", None)
        if shape is not None:
            takes = f"shape {tuple(shape)}"
        else:
            takes = "any channels" if self.channels is None else f"{self.channels} channel{'s'[: self.channels != 1]}"
        low, high = self.sigma_range
        return f"{type(self).__name__}({self.name!r}, {takes}, sigma {low:.3g} to {high:.3g})"

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the estimate of x0, in the shape, dtype and device of x.

        Args:
            x: noisy images (b, C, H, W), float.
            sigma: standard deviation of the noise in units of x; a number, a scalar tensor, or one per member (b,).

        Raises:
            TypeError: x is not a floating point tensor.
            ValueError: a shape, the channel count or a sigma that this prior does not take.
        """
        check_image(x, self.channels, self.name)
        levels = check_sigma(sigma, x, self.sigma_range, self.name)
        if levels.stride(0) == 0 and len(levels):
            # One level for all stays so: `by_level` sees it at once.
            levels = levels[:1].clamp_min(self.sigma_range[0]).expand_as(levels)
        else:
            levels = levels.clamp_min(self.sigma_range[0])
        return self.denoise(x, levels)

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for checked input: x (b, C, H, W) and sigma (b,) with x's dtype and device."""

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> Prior:
        """A copy of this prior on `device` and in `dtype`; itself where it holds no tensors.

        `precision` ("auto", "float32", "bfloat16") and `compile` are of the network of a prior that has one
        (`precision.NetworkPrior`); others have no use for them.
        """
        return self


class FunctionPrior(Prior):
    """Any callable `(x, sigma) -> estimate of x0` in the prior slot.

    Args:
        function: the callable; a function, a module, or an object that follows `Denoiser`.
        name: what messages call it; the function's own name by default.
        sigma_range: lowest and highest noise level it serves.
        channels: the number of channels it takes; None for any.
        differentiable: whether autograd can go through it.
        per_member: True where it takes sigma as a tensor (b,). Otherwise it receives a scalar tensor, and members with
            different sigma go through it in separate calls: a function written for one noise level that multiplies
            (b, C, H, W) by (b,) would go wrong in silence.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        name: str | None = None,
        sigma_range: tuple[float, float] = (0.0, math.inf),
        channels: int | None = None,
        differentiable: bool = True,
        per_member: bool = False,
    ) -> None:
        if not callable(function):
            raise TypeError(f"A prior must be callable as prior(x, sigma), got {type(function).__name__}.")
        self.function = function
        given = name or getattr(function, "name", None) or getattr(function, "__name__", None)
        self.name = str(given or type(function).__name__)
        self.sigma_range = check_range(sigma_range, self.name)
        self.channels = channels
        self.differentiable = differentiable
        self.per_member = per_member

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        result = self.function(x, sigma) if self.per_member else by_level(self.function, x, sigma)
        if not isinstance(result, Tensor) or result.shape != x.shape:
            found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"{self.name} must return a tensor of the shape of its input {tuple(x.shape)}, got {found}."
            )
        return result.to(x.dtype)

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> Prior:
        function: Any = self.function
        if isinstance(function, nn.Module):
            if _settled(function, device, dtype):
                return self
            moved: Any = copy.deepcopy(function).to(device=device, dtype=dtype)
        elif not isinstance(function, type) and callable(getattr(function, "to", None)):
            moved = function.to(device=device, dtype=dtype)
            if moved is function:
                return self
        else:
            return self
        clone = copy.copy(self)
        clone.function = moved
        return clone


def as_prior(function: Callable[..., Tensor]) -> Prior:
    """Return a `Prior` for anything callable as `(x, sigma)`.

    A `Prior` passes through. An object that follows `Denoiser` keeps its range and is called with sigma of shape (b,).
    Any other callable gets the defaults: every sigma, any channels, differentiable, sigma given as a scalar tensor;
    use `FunctionPrior` to state others.

    >>> shrink = as_prior(lambda x, sigma: x / (1 + sigma**2))
    >>> shrink(torch.ones(2, 1, 1, 1), torch.tensor([0.0, 1.0])).flatten().tolist()
    [1.0, 0.5]
    """
    if isinstance(function, Prior):
        return function
    if isinstance(function, Denoiser):
        return FunctionPrior(
            function,
            sigma_range=function.sigma_range,
            channels=getattr(function, "channels", None),
            differentiable=function.differentiable,
            per_member=True,
        )
    return FunctionPrior(function)


def by_level(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    """Call `function(members, scalar sigma)` once per distinct sigma and put the members back in their order."""
    if len(sigma) == 0:
        return x.clone()
    if len(sigma) == 1 or sigma.stride(0) == 0:
        return function(x, sigma[0])
    levels = sigma.detach().unique()
    if len(levels) == 1:
        return function(x, sigma[0])
    groups = [(sigma == level).nonzero().flatten() for level in levels]
    results = torch.cat([function(x[index], sigma[index[0]]) for index in groups])
    return results[torch.cat(groups).argsort()]


def lies_on(held: torch.device, wanted: torch.device | str) -> bool:
    """Whether `held` is the device that `wanted` names, where "cuda" stands for the current one, such as "cuda:0"."""
    wanted = torch.device(wanted)
    if held.type != wanted.type:
        return False
    if wanted.index is None and wanted.type == "cuda":
        return held.index == torch.cuda.current_device()
    return (held.index or 0) == (wanted.index or 0)


def _settled(module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> bool:
    """Whether `module.to(device, dtype)` would change none of its tensors; False where it moves in its own way."""
    if type(module).to is not nn.Module.to:
        return False
    for tensor in (*module.parameters(), *module.buffers()):
        if device is not None and not lies_on(tensor.device, device):
            return False
        # Module.to casts floating point and complex tensors only.
        if dtype is not None and (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != dtype:
            return False
    return True


def check_range(sigma_range: tuple[float, float], name: str) -> tuple[float, float]:
    """The range as two floats.

    Raises:
        ValueError: it is not 0 <= lowest <= highest.
    """
    low, high = (float(level) for level in sigma_range)
    if not (0.0 <= low <= high):
        raise ValueError(
            f"sigma_range of {name} must be (lowest, highest) with 0 <= lowest <= highest, got {sigma_range}."
        )
    return low, high


def check_image(x: Tensor, channels: int | None, name: str) -> None:
    """Raise a sentence unless x is a float tensor (b, C, H, W) with the given number of channels."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a torch tensor (b, C, H, W), got {type(x).__name__}; use torch.as_tensor first.")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} takes floating point images in [0, 1], got {x.dtype}; divide by the data range first.")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{name} takes images of shape (b, C, H, W), got {tuple(x.shape)}; add the missing axes.")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"{name} takes images of {channels} channel(s), got {x.shape[1]}; wrap it in "
            f"invdiff.priors.match_channels(prior, {x.shape[1]})."
        )


def check_sigma(sigma: float | Tensor, x: Tensor, sigma_range: tuple[float, float], name: str) -> Tensor:
    """Sigma as a tensor (b,) like x.

    Raises:
        ValueError: a wrong shape, or a level that is not finite, negative, or above the highest of `sigma_range`.
    """
    levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if levels.numel() == 1 and levels.ndim <= 1:
        levels = levels.reshape(1).expand(x.shape[0])
    if levels.shape != (x.shape[0],):
        raise ValueError(
            f"sigma must be a number or have one entry per image ({x.shape[0]}), got a tensor {tuple(levels.shape)}."
        )
    if not isinstance(sigma, Tensor):
        extremes = [float(sigma)]
    elif len(levels) and (len(levels) == 1 or levels.stride(0) == 0):
        extremes = [levels[0].item()]
    else:
        extremes = torch.stack(torch.aminmax(levels.detach())).tolist() if len(levels) else [0.0, 0.0]
    for level in extremes:
        if not (math.isfinite(level) and level >= 0):
            raise ValueError(f"sigma must be finite and at least 0, got {level}.")
        if level > sigma_range[1] * (1 + 1e-6):
            raise ValueError(
                f"sigma {level:.4g} is above the range of {name}, {sigma_range[0]:.4g} to {sigma_range[1]:.4g}; "
                f"start at a lower noise level or use a prior with a wider range."
            )
    return levels
