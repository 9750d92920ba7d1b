"""What a diffusion network predicts, and the exact conversions between the ways of saying it.

With x = x0 + sigma eps (network units, variance exploding), every output f of the field is affine in the image:

    D(x, sigma) = skip x + out f

    kind     predicts                                     skip                     out
    eps      the noise                                    1                        -sigma
    x0       the image                                    0                        1
    v        (eps - sigma x0) / sqrt(1 + sigma^2)         1 / (1 + sigma^2)        -sigma / sqrt(1 + sigma^2)
    F        EDM, s = sigma_data                          s^2 / (sigma^2 + s^2)    sigma s / sqrt(sigma^2 + s^2)
    flow     the velocity eps - x0                        1 / (1 + sigma)          -sigma / (1 + sigma)
    score    grad_x log p_sigma(x)                        1                        sigma^2

Ho et al. 2020 (eps), Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models" (v),
Karras et al. 2022, table 1 (F), Liu, Gong, Liu 2023 (flow), Song et al. 2021 (score). The score is that of the
variance-exploding process; of a variance-preserving one, where x_t = x / sqrt(1 + sigma^2), it is sqrt(1 + sigma^2)
times as long. What the network is fed is c_in x, with c_in of the process it was trained on (`input_scale`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..process import double

__all__ = [
    "FAMILIES",
    "KINDS",
    "Scalings",
    "convert",
    "from_x0",
    "input_scale",
    "loss",
    "scalings",
    "score",
    "target",
    "to_x0",
    "weight",
]

KINDS = ("eps", "x0", "v", "F", "flow", "score")
FAMILIES = ("vp", "ve", "edm", "flow")


class Scalings(NamedTuple):
    """D = skip x + out f; both have the shape of sigma."""

    skip: Tensor
    out: Tensor


def scalings(kind: str, sigma: float | Tensor, sigma_data: float = 0.5) -> Scalings:
    """The two factors in D = skip x + out f (module docstring), in float64.

    Args:
        kind: one of `KINDS`.
        sigma: noise level of x0 + sigma eps in the network's units, any shape.
        sigma_data: standard deviation of the data, network units; enters "F" only.

    Raises:
        ValueError: for an unknown kind.

    >>> scalings("v", 0.0)
    Scalings(skip=tensor(1., dtype=torch.float64), out=tensor(-0., dtype=torch.float64))
    """
    _check(kind)
    s = double(sigma)
    one = torch.ones_like(s)
    if kind == "eps":
        return Scalings(one, -s)
    if kind == "x0":
        return Scalings(0 * one, one)
    if kind == "v":
        return Scalings(1 / (1 + s**2), -s / (1 + s**2).sqrt())
    if kind == "F":
        total = s**2 + sigma_data**2
        return Scalings(sigma_data**2 / total, s * sigma_data / total.sqrt())
    if kind == "flow":
        return Scalings(1 / (1 + s), -s / (1 + s))
    return Scalings(one, s**2)


def input_scale(family: str, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """c_in with which x0 + sigma eps is fed to a network, in the shape of sigma and float64.

        vp      1 / sqrt(1 + sigma^2)
        ve      1
        edm     1 / sqrt(sigma^2 + sigma_data^2)
        flow    1 / (1 + sigma)

    It depends on the family of the process alone, not on its betas: sigma says how far the process has gone.

    Args:
        family: one of `FAMILIES`.
        sigma: noise level, network units, any shape.
        sigma_data: standard deviation of the data, network units; enters "edm" only.

    Raises:
        ValueError: for an unknown family.
    """
    s = double(sigma)
    if family == "vp":
        return (1 + s**2).rsqrt()
    if family == "ve":
        return torch.ones_like(s)
    if family == "edm":
        return (s**2 + sigma_data**2).rsqrt()
    if family == "flow":
        return 1 / (1 + s)
    raise ValueError(f"The family of a process is {family!r}: expected one of {', '.join(FAMILIES)}.")


def to_x0(kind: str, output: Tensor, x: Tensor, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """The image estimate skip x + out f from a network's output f.

    Args:
        kind: what the network predicts, one of `KINDS`.
        output: f, (b, ...).
        x: x0 + sigma eps, (b, ...), network units (unscaled, whatever the network was fed).
        sigma: scalar or (b,).
        sigma_data: standard deviation of the data, network units; enters "F" only.

    Raises:
        ValueError: for an unknown kind.
    """
    skip, out = scalings(kind, sigma, sigma_data)
    return _column(skip, x) * x + _column(out, x) * output


def from_x0(kind: str, x0: Tensor, x: Tensor, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """The output f = (x0 - skip x) / out that stands for the image estimate x0; arguments as for `to_x0`.

    Raises:
        ValueError: for an unknown kind, or at sigma = 0, where only "x0" says anything.
    """
    return convert(x0, x, sigma, "x0", kind, sigma_data)


def convert(
    output: Tensor, x: Tensor, sigma: float | Tensor, source: str, target: str, sigma_data: float = 0.5
) -> Tensor:
    """One kind of output as another: ((skip_s - skip_t) x + out_s f) / out_t, with factors computed in float64.

    Args:
        output: f of the kind `source`, (b, ...).
        x: x0 + sigma eps, (b, ...), network units.
        sigma: scalar or (b,), above 0.
        source: kind of `output`, one of `KINDS`.
        target: kind to return.
        sigma_data: standard deviation of the data, network units; enters "F" only.

    Raises:
        ValueError: for an unknown kind, or at sigma = 0, where an image estimate says nothing of the noise.
    """
    _check(source)
    _check(target)
    if source == target:
        return output.clone()
    given, wanted = scalings(source, sigma, sigma_data), scalings(target, sigma, sigma_data)
    if bool((wanted.out == 0).any()):
        raise ValueError(f"sigma is 0, where an image has no {target}: expected noise levels above 0.")
    on_x = (given.skip - wanted.skip) / wanted.out
    return _column(on_x, x) * x + _column(given.out / wanted.out, x) * output


def target(kind: str, x0: Tensor, eps: Tensor, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """What the loss compares a network's output with, from the image and the noise that made x = x0 + sigma eps.

    Args:
        kind: one of `KINDS`.
        x0: images, (b, ...), network units.
        eps: standard normal noise, (b, ...).
        sigma: scalar or (b,), above 0.
        sigma_data: standard deviation of the data, network units; enters "F" only.

    Raises:
        ValueError: for an unknown kind.
    """
    _check(kind)
    s = double(sigma)
    one = torch.ones_like(s)
    # Each written out, as the difference x0 - skip x loses its digits at small sigma.
    if kind == "F":
        root = (s**2 + sigma_data**2).sqrt()
        on_x0, on_eps = s / (sigma_data * root), -sigma_data / root
    else:
        on_x0, on_eps = {
            "eps": (0 * one, one),
            "x0": (one, 0 * one),
            "v": (-s / (1 + s**2).sqrt(), (1 + s**2).rsqrt()),
            "flow": (-one, one),
            "score": (0 * one, -1 / s),
        }[kind]
    return _column(on_x0, x0) * x0 + _column(on_eps, x0) * eps


def weight(kind: str, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """The factor w with which w |f - target|^2 is the same loss for every kind, EDM's, in the shape of sigma.

        w(kind) = lambda(sigma) out^2,    lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2

    as |D - x0|^2 = out^2 |f - target|^2; lambda is of Karras et al. 2022, table 1, with which "F" has w = 1 and an
    untrained network the loss 1 at every noise level. A paper that minimises |f - target|^2 of its own kind with no
    weight uses lambda = 1 / out^2 instead: 1 / sigma^2 for eps (Ho et al. 2020), 1 + 1 / sigma^2 for v (Salimans and
    Ho 2022), (1 + 1 / sigma)^2 for flow (Liu, Gong, Liu 2023).

    Raises:
        ValueError: for an unknown kind.
    """
    reference = scalings("F", sigma, sigma_data).out
    return (scalings(kind, sigma, sigma_data).out / reference) ** 2


def loss(kind: str, output: Tensor, x0: Tensor, eps: Tensor, sigma: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """The mean over each member's values of weight |f - target|^2, (b,): the same number whatever the kind.

    Raises:
        ValueError: for an unknown kind.
    """
    error = (output - target(kind, x0, eps, sigma, sigma_data)).square().flatten(1).mean(1)
    return _column(weight(kind, sigma, sigma_data), error) * error


def score(x: Tensor, denoised: Tensor, sigma: float | Tensor) -> Tensor:
    """grad_x log p_sigma(x) = (D(x, sigma) - x) / sigma^2, Tweedie's formula (Efron 2011, eq. 2.8).

    Args:
        x: x0 + sigma eps, (b, ...), any units.
        denoised: D(x, sigma), (b, ...), in the same.
        sigma: scalar or (b,), above 0, in the same.

    Raises:
        ValueError: at sigma = 0.
    """
    return from_x0("score", denoised, x, sigma)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """A scalar or (b,) in float64 -> dtype and device of `like`, broadcast over its members."""
    # In two steps, as float64 cannot be moved to a device that has none.
    values = values.to(like.dtype).to(like.device)
    return values.reshape(-1, *(1,) * (like.ndim - 1)) if values.ndim else values


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"The kind of a network's output is {kind!r}: expected one of {', '.join(KINDS)}.")
