"""In which precision a network computes: bfloat16 where the hardware gains from it, float32 elsewhere."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from .base import Prior, lies_on

__all__ = ["PRECISIONS", "NetworkPrior", "lay_out", "resolve"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

# bfloat16 rounds to eight bits: less than this gain is not worth them.
_LEAST_GAIN = 1.3


def resolve(precision: str, device: torch.device | str) -> torch.dtype:
    """The dtype that `precision` stands for on a device.

    Args:
        precision: "float32", "float64", "bfloat16", or "auto": bfloat16 where the processor has units for it and a
            convolution in it, timed once per process, is at least 1.3 times as fast; else float32.
        device: where the network computes.

    Raises:
        ValueError: for any other precision.

    >>> resolve("float32", "cpu")
    torch.float32
    """
    if precision == "auto":
        return torch.bfloat16 if _gains(torch.device(device).type) else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: expected one of auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


def lay_out(
    network: nn.Module, precision: str, *, channels_last: bool = True, compile: bool = False
) -> tuple[Callable[..., Tensor], torch.dtype]:
    """The network ready to compute in a precision, and that dtype; the one that was given keeps its weights.

    Args:
        network: where its first parameter lies it will compute. Submodules of the names that it lists in
            `full_precision`, if any, are not rounded to bfloat16.
        precision: as for `resolve`.
        channels_last: lay the weights out with the channels last.
        compile: run it through `torch.compile`.

    Raises:
        ValueError: for an unknown precision.
    """
    held = next(network.parameters())
    dtype = resolve(precision, held.device)
    laid = network
    if dtype != held.dtype or channels_last:
        layout = torch.channels_last if channels_last else torch.preserve_format
        laid = copy.deepcopy(network).to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        kept = getattr(network, "full_precision", ()) if dtype == torch.bfloat16 else ()
        for name, part in network.named_modules():
            if name.rpartition(".")[2] in kept:
                laid.set_submodule(name, copy.deepcopy(part).to(memory_format=layout))  # type: ignore[call-overload]
    return (torch.compile(laid) if compile else laid), dtype


class NetworkPrior(Prior):
    """A prior whose estimate comes from a network of its own, which moves between devices and precisions.

    Args:
        network: the module; the prior computes with a frozen copy of it in evaluation mode.
        precision: "auto", "float32", "bfloat16" or "float64", see `resolve`.
        channels_last: lay tensors out with the channels last; where left out, in bfloat16 only.

    Attributes:
        precision: the dtype that it computes in.
        compiled: whether it runs through `torch.compile`, which changes the last bits of results.

    Raises:
        ValueError: an unknown precision.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, *, precision: str, channels_last: bool | None = None) -> None:
        # As it came: the weights' hash and other precisions are those of the full weights.
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.compiled = False
        self._wanted, self._last = precision, channels_last
        self._settle()

    def _place(self) -> torch.device | None:
        """Where the network lies; None where it holds no tensor."""
        return next(self.network.parameters()).device

    def _settle(self) -> None:
        device = next(self.network.parameters()).device
        half = resolve(self._wanted, device) is torch.bfloat16
        last = half if self._last is None else self._last
        self.layout = torch.channels_last if last else torch.contiguous_format
        self._run, self._dtype = lay_out(self.network, self._wanted, channels_last=last, compile=self.compiled)
        self.precision = str(self._dtype).removeprefix("torch.")

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> Self:
        """A copy on another device, in another precision, compiled or not; what is left out stays as it is.

        Args:
            device: where the network computes.
            dtype: ignored, as results keep the dtype of the image.
            precision: "auto", "float32", "bfloat16" or "float64".
            compile: whether the network runs through `torch.compile`: half a minute for the first image of a size.

        Raises:
            ValueError: for an unknown precision.
        """
        here = self._place()
        stays = device is None or here is None or lies_on(here, device)
        if stays and precision in (None, self._wanted) and compile in (None, self.compiled):
            return self
        clone = copy.copy(self)
        if not stays:
            clone.network = copy.deepcopy(self.network).to(device)
        clone._wanted = self._wanted if precision is None else precision
        clone.compiled = self.compiled if compile is None else compile
        clone._settle()
        return clone


@functools.cache
def _gains(kind: str) -> bool:
    if kind == "cuda":
        # Every card whose bfloat16 is more than emulation has matrix units for it; nothing needs to be timed.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    units = torch.cpu.get_capabilities()
    if not (units.get("avx512_bf16") or units.get("amx_bf16")):
        return False
    return _seconds(torch.float32) >= _LEAST_GAIN * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype, repeats: int = 7) -> float:
    """The shortest of several 3x3 convolutions of 64 channels on 64x64 pixels: other load only makes them longer."""
    x = torch.zeros(1, 64, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.zeros(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    with torch.no_grad():
        for _ in range(repeats):
            clock = time.perf_counter()
            torch.nn.functional.conv2d(x, kernel, padding=1)
            best = min(best, time.perf_counter() - clock)
    return best
