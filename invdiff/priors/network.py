"""Any diffusion network `f(x_t, t)` in the prior slot, from what its authors say of it: its output, betas and range.

With an image in [0, 1] taken to the network's data range, z = low + (high - low) x, and sigma scaled alike,

    D(z, sigma) = skip z + out f(c_in z, t(sigma)),

with skip and out of what f predicts (`invdiff.priors.parametrization`) and c_in and t of the process it was trained on
(`invdiff.process`). Times between two steps of a discrete process are given as fractions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.priors.base import check_range
from invdiff.priors.parametrization import KINDS, input_scale, to_x0
from invdiff.priors.precision import NetworkPrior, resolve
from invdiff.process import EDM, Discrete, Flow, Process

__all__ = ["ConvertedPrior", "from_network"]


class ConvertedPrior(NetworkPrior):
    """A diffusion network under its own conventions as a prior; `from_network` makes it and says what they mean."""

    network: Any  # a module, or any function of (x_t, t)

    def __init__(
        self,
        network: Callable[..., Tensor],
        *,
        predicts: str,
        process: Process,
        data_range: tuple[float, float],
        time: str | Callable[[Tensor], Tensor],
        learned_sigma: bool,
        sigma_data: float,
        sigma_range: tuple[float, float] | None,
        channels: int,
        size: tuple[int, int] | None,
        multiple: int,
        bgr: bool,
        precision: str,
        name: str,
    ) -> None:
        self.name = name
        self.predicts = predicts
        self.process = process
        self.data_range = data_range
        self.time = time
        self.learned_sigma = learned_sigma
        self.sigma_data = sigma_data
        self.channels: int = channels
        self.size = size
        self.multiple = multiple
        self.bgr = bgr
        span = data_range[1] - data_range[0]
        self.sigma_range = check_range(sigma_range or (process.sigma_min / span, process.sigma_max / span), name)
        highest = process.sigma_max / span
        if self.sigma_range[1] > highest * (1 + 1e-6):
            raise ValueError(
                f"sigma_range of {name} reaches {self.sigma_range[1]:g}, and its noise levels end at {highest:g} in "
                f"image units: lower it, or give the schedule that the network was trained on."
            )
        # As it came: its hash, and what other precisions are cast from.
        self.network = _frozen(network) if isinstance(network, nn.Module) else network
        self.settings: dict[str, Any] = {}
        if callable(time):
            # A function has no other description: what it makes of three times, which the record can hold.
            levels = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
            times = process.time(levels.clamp(process.sigma_min, process.sigma_max)).to(_place(network) or "cpu")
            self.told = [list(pair) for pair in zip(times.tolist(), time(times).tolist(), strict=True)]
        self.compiled = False
        self._wanted = precision
        self._settle()

    def _place(self) -> torch.device | None:
        return _place(self.network)

    def _settle(self) -> None:
        self._dtype = resolve(self._wanted, self._place() or "cpu")
        self.precision = str(self._dtype).removeprefix("torch.")
        run = self.network
        if isinstance(run, nn.Module):
            # bfloat16 is autocast's, which takes weights in float32.
            held = torch.float64 if self._dtype == torch.float64 else torch.float32
            tensors = (*run.parameters(), *run.buffers())
            if any(tensor.is_floating_point() and tensor.dtype != held for tensor in tensors):
                run = copy.deepcopy(run).double() if held == torch.float64 else copy.deepcopy(run).float()
        self._run: Callable[..., Tensor] = torch.compile(run) if self.compiled else run

    @property
    def stride(self) -> int:
        """An image cut at multiples of this many pixels is treated as the whole image is, away from the cut."""
        return self.multiple

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        z, level, output = self.run(x, sigma)
        return self.read(self.predicts, z, level, output, x)

    def run(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image and sigma in the network's units, and its output, padded and in the network's order of channels."""
        if self.size is not None and x.shape[-2:] != self.size:
            wanted, found = ("x".join(map(str, size)) for size in (self.size, tuple(x.shape[-2:])))
            raise ValueError(f"{self.name} takes images of {wanted} pixels, got {found}.")
        low, high = self.data_range
        z = low + (high - low) * x.to(torch.promote_types(x.dtype, torch.float32))
        if self.bgr:
            z = z.flip(1)
        down, right = (-side % self.multiple for side in x.shape[-2:])
        if down or right:
            # Repeated edges need no image larger than the pad, as reflection would.
            z = nn.functional.pad(z, (0, right, 0, down), mode="replicate")
        # No network was told of sigma = 0, where log sigma has no value.
        level = ((high - low) * sigma.double()).clamp_min(max(self.process.sigma_min, 1e-6))
        time = self.process.time(level)
        fed = input_scale("edm", level, self.sigma_data) if self.predicts == "F" else self.process.scale(time)
        kept = torch.float64 if self._dtype == torch.float64 else torch.float32
        inner = (fed.to(z)[:, None, None, None] * z).to(kept)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            output = self._run(inner.contiguous(memory_format=torch.channels_last), self._argument(time, kept))
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{self.name} must return a tensor, got {type(output).__name__}; wrap the network in a function of "
                f"(x, t) that picks it out."
            )
        parts = 2 if self.learned_sigma else 1
        if output.shape != (len(z), parts * self.channels, *z.shape[2:]):
            extra = output.ndim == 4 and output.shape[1] == 2 * self.channels and not self.learned_sigma
            hint = "; its second half looks like a learned variance, so say learned_sigma=True" if extra else ""
            raise ValueError(
                f"{self.name} must return {(len(z), parts * self.channels, *z.shape[2:])} for images of "
                f"{tuple(z.shape)}, got {tuple(output.shape)}{hint}."
            )
        return z, level, output[:, : self.channels].to(z)

    def read(self, predicts: str, z: Tensor, level: Tensor, output: Tensor, like: Tensor) -> Tensor:
        """The image estimate of what `run` returned, if the output is what `predicts` says."""
        if predicts == "score":
            # grad log p of x_t = scale x is 1 / scale that of x.
            output = self.process.scale(self.process.time(level)).to(output)[:, None, None, None] * output
        clean = to_x0(predicts, output, z, level, self.sigma_data)[..., : like.shape[-2], : like.shape[-1]]
        low, high = self.data_range
        clean = (clean.flip(1) if self.bgr else clean) - low
        return (clean / (high - low)).to(like.dtype)

    def _argument(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        if callable(self.time):
            told = self.time(time)
            # A network that looks its time up in a table wants whole numbers.
            return told.to(dtype) if told.is_floating_point() else told
        return time.round().long() if self.time == "integer" else time.to(dtype)


def from_network(
    network: Callable[..., Tensor],
    *,
    predicts: str,
    betas: Tensor | None = None,
    alphas_bar: Tensor | None = None,
    sigmas: Tensor | None = None,
    schedule: Process | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
    time: str | Callable[[Tensor], Tensor] | None = None,
    learned_sigma: bool = False,
    sigma_data: float = 0.5,
    sigma_range: tuple[float, float] | None = None,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    multiple: int = 1,
    bgr: bool = False,
    precision: str = "auto",
    self_test: bool = True,
    name: str | None = None,
) -> ConvertedPrior:
    """A diffusion network `network(x_t, t)` as a prior: D = skip z + out f(c_in z, t), see the module's docstring.

    A DDPM (Ho et al. 2020) whose state dict holds its table of alpha_bar and which wants t / 1000:

        network.load_state_dict(priors.load_state_dict("ddpm.pth"))
        prior = priors.from_network(network, predicts="eps", alphas_bar=network.alpha_t, data_range=(-0.5, 0.5),
                                    time=lambda t: t / 1000, size=(28, 28))

    NCSN++ of score_sde (Song et al. 2021), continuous. The VE network is told its noise level and returns the score of
    images in [0, 1]; the VP network is told 999 t and returns the noise of images in [-1, 1]:

        ve = VE(sigma_min=0.01, sigma_max=348.0)
        prior = priors.from_network(ve_network, predicts="score", schedule=ve, time=ve.sigma, data_range=(0, 1))
        prior = priors.from_network(vp_network, predicts="eps", schedule=VPLinear(), time=lambda t: 999 * t)

    Args:
        network: a module or function of x_t (b, C, H, W) and t (b,), float32. Of a module a frozen copy in evaluation
            mode is used, which shares its weights: training the module further changes the prior.
        predicts: what it returns: "eps" (the noise), "x0" (the image), "v" (sqrt(alpha_bar) eps - sqrt(1 - alpha_bar)
            x0), "F" (EDM), "flow" (the velocity eps - x0) or "score" (grad log p of x_t).
        betas: variances of its steps, (T,).
        alphas_bar: or the products of 1 - beta, (T,).
        sigmas: or the noise levels of a network that sees x0 + sigma eps unscaled, (T,), rising or falling.
        schedule: or a process of `invdiff.process`; EDM and Flow are taken for "F" and "flow" where all are left out.
        data_range: the values that black and white had in training.
        time: what the network is told: "fraction" (the process's own time, index or unit, with fractions between
            steps; the default), "integer" (that rounded, for networks that look it up in a table), or a function of
            that time. "F" is told log(sigma) / 4 where left out.
        learned_sigma: the network returns 2 C channels, the second half a variance, which is left out.
        sigma_data: standard deviation of the training data in the network's units; enters "F" only.
        sigma_range: noise levels it serves, image units; those of the process where left out.
        channels: image channels C; those of the network's first convolution where left out.
        size: (H, W) for a network that takes one size only.
        multiple: sides are padded to multiples of this by repeating the edge, and cropped again.
        bgr: the network was trained on colours in the order blue, green, red.
        precision: "auto", "float32", "bfloat16" (under autocast) or "float64".
        self_test: denoise a built-in image and warn if another reading of the network is clearly better
            (`invdiff.priors.selftest`).
        name: what messages call it.

    Raises:
        ValueError: settings that do not go together, or a network that returns another shape or non-finite numbers.

    >>> from invdiff.process import VPLinear
    >>> silent = from_network(lambda x, t: 0 * x, predicts="eps", schedule=VPLinear(), channels=1, self_test=False)
    >>> silent(torch.full((1, 1, 2, 2), 0.25), 0.1).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if predicts not in KINDS:
        raise ValueError(f"predicts is {predicts!r}: expected one of {', '.join(KINDS)}.")
    if not callable(network):
        raise TypeError(f"A network must be callable as network(x, t), got {type(network).__name__}.")
    name = name or getattr(network, "__name__", None) or type(network).__name__
    low, high = _limits(data_range)
    if isinstance(time, str) and time not in ("fraction", "integer"):
        raise ValueError(f"time is {time!r}: expected fraction, integer or a function of the process's time.")
    if time is None:
        time = edm_time if predicts == "F" else "fraction"
    process = _process(predicts, betas, alphas_bar, sigmas, schedule)
    if channels is None:
        channels = _first_channels(network, name)
    prior = ConvertedPrior(
        network,
        predicts=predicts,
        process=process,
        data_range=(low, high),
        time=time,
        learned_sigma=learned_sigma,
        sigma_data=sigma_data,
        sigma_range=sigma_range,
        channels=channels,
        size=None if size is None else (int(size[0]), int(size[1])),
        multiple=multiple,
        bgr=bgr,
        precision=precision,
        name=name,
    )
    if self_test:
        from invdiff.priors.selftest import check

        check(prior)
    return prior


def edm_time(sigma: Tensor) -> Tensor:
    """What EDM's networks are told: log(sigma) / 4 (Karras et al. 2022, table 1)."""
    return sigma.log() / 4


def _limits(data_range: object) -> tuple[float, float]:
    """Black and white as two floats."""
    try:
        low, high = (float(value) for value in data_range)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"data_range is {data_range!r}: expected (black, white) such as (-1, 1), (0, 1) or (0, 255).")
    return low, high


def _process(
    predicts: str, betas: Tensor | None, alphas_bar: Tensor | None, sigmas: Tensor | None, schedule: Process | None
) -> Process:
    given: dict[str, Any] = {"betas": betas, "alphas_bar": alphas_bar, "sigmas": sigmas, "schedule": schedule}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given: expected one of them, as each says the noise levels.")
    if betas is not None:
        return Discrete.from_betas(betas)
    if alphas_bar is not None:
        return Discrete(alphas_bar)
    if sigmas is not None:
        return Discrete.from_sigmas(sigmas)
    if schedule is not None:
        return schedule
    if predicts == "F":
        return EDM()
    if predicts == "flow":
        return Flow()
    raise ValueError(
        f"The noise levels of a network that predicts {predicts} are not known: give betas, alphas_bar, "
        f"sigmas or schedule."
    )


def _first_channels(network: Callable[..., Tensor], name: str) -> int:
    for module in network.modules() if isinstance(network, nn.Module) else ():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError(f"The number of image channels that {name} takes cannot be told: give channels.")


def _frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation mode and without gradients of its weights, which it shares with the one given."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    shared |= {id(buffer): buffer.detach() for buffer in network.buffers()}
    return copy.deepcopy(network, shared).eval()


def _place(network: Callable[..., Tensor]) -> torch.device | None:
    if isinstance(network, nn.Module):
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return None
