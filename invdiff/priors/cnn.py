"""Convolutional denoisers that load the weights of the KAIR collection as they are: DnCNN, FFDNet and DRUNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from invdiff.priors.base import check_range
from invdiff.priors.precision import NetworkPrior
from invdiff.priors.weights import fill, load_state_dict, read_prior

__all__ = ["CNNPrior", "DRUNet", "DRUNetwork", "DnCNN", "FFDNet", "plain_stack"]


class CNNPrior(NetworkPrior):
    """A prior whose estimate comes from a convolutional denoiser.

    Args:
        network: the module; the prior computes with a frozen copy of it in evaluation mode.
        channels: image channels.
        sigma_range: lowest and highest noise level that it was trained for.
        precision: "float32", "float64", "bfloat16" or "auto" (see `precision.resolve`): what the network computes in.
            Results keep the image's dtype. bfloat16 rounds the image of a network that returns it (FFDNet, DRUNet).
        channels_last: lay the tensors out with the channels last; where left out, in bfloat16 only.

    Raises:
        ValueError: an unknown precision.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int,
        sigma_range: tuple[float, float],
        precision: str = "float32",
        channels_last: bool | None = None,
    ) -> None:
        super().__init__(network, precision=precision, channels_last=channels_last)
        self.channels = channels
        self.sigma_range = check_range(sigma_range, self.name)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        held = next(self.network.parameters()).device
        if held != x.device:
            raise ValueError(f"{self.name} is on {held} and the image on {x.device}; move it with prior.to(device).")
        inner = x.to(dtype=self._dtype, memory_format=self.layout)
        return self.estimate(x, inner, sigma.to(self._dtype)).to(x.dtype)

    def estimate(self, x: Tensor, inner: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for x, with `inner` the same image in the network's precision and layout."""
        raise NotImplementedError


def _declared(path: str | Path) -> tuple[float, float] | None:
    """The noise levels in the card of a file of `experiments.train`; None for files without one."""
    if Path(path).suffix != ".safetensors":
        return None
    try:
        low, high = read_prior(path)[2]["sigma_range"]
    except (KeyError, ValueError):
        return None
    return float(low), float(high)


class DnCNN(CNNPrior):
    """DnCNN, a stack of convolutions that predicts the noise: `D(x, sigma) = x - net(x)` (Zhang et al. 2017, eq. 1).

    It never sees sigma. A blind network (trained on a range) judges the noise by itself; one of a fixed level serves
    that level only, and lower ones as that level.
    """

    name = "dncnn"

    @property
    def receptive_radius(self) -> int:
        """Half a kernel of every layer."""
        return _reach(self.network)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        sigma: float | None = None,
        sigma_range: tuple[float, float] | None = None,
        **options: Any,
    ) -> Self:
        """Build the network from a file of weights named `model.N.weight`, `model.N.bias`.

        A file of `experiments.train` says what it was trained for. A KAIR file of 20 layers is blind up to 55/255. Any
        other was trained for one level: `sigma` where given, else the number at the end of the file's name, as in
        `dncnn_25.pth` (25/255).

        Args:
            path: the file of weights.
            sigma: the level of a network trained for one.
            sigma_range: (lowest, highest) where neither rule holds.
            options: `precision` and `channels_last` of `CNNPrior`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is refused, is no DnCNN, or its level cannot be told.
        """
        state = load_state_dict(path)
        network, taken, made = plain_stack(state, path)
        if taken != made:
            raise ValueError(
                f"{path} takes {taken} and returns {made} channels, and a DnCNN as many as it takes; "
                f"is it a file for ffdnet?"
            )
        if sigma is not None:
            sigma_range = (sigma, sigma)
        sigma_range = sigma_range or _declared(path)
        if sigma_range is None:
            number = re.search(r"(?:^|_)(\d{1,3})$", Path(path).stem)
            if _depth(state) == 20:
                sigma_range = (0.0, 55 / 255)
            elif number:
                sigma_range = (int(number[1]) / 255, int(number[1]) / 255)
            else:
                raise ValueError(
                    f"The noise level that {path} was trained for cannot be told; give it as sigma=25/255."
                )
        return cls(network, channels=taken, sigma_range=sigma_range, **options)

    def estimate(self, x: Tensor, inner: Tensor, sigma: Tensor) -> Tensor:
        # The noise is subtracted in the precision of x, so that a coarser network does not round the image.
        return x - self._run(inner).to(x.dtype)


class FFDNet(CNNPrior):
    """FFDNet, convolutions at half resolution that see a map of sigma: `D(x, sigma) = net(x, sigma)`

    (Zhang, Zuo and Zhang 2018, eq. 3), trained up to 75/255.
    """

    name = "ffdnet"
    stride = 2

    @property
    def receptive_radius(self) -> int:
        """Half a kernel of every layer, at half resolution, and the other pixel of a pair."""
        return 2 * _reach(self.network) + 1

    @classmethod
    def from_file(cls, path: str | Path, *, sigma_range: tuple[float, float] | None = None, **options: Any) -> Self:
        """Build the network from a file of weights named `model.N.weight`, `model.N.bias`.

        Args:
            path: the file of weights.
            sigma_range: the levels it was trained for; where left out what the file says, else those of the KAIR files.
            options: `precision` and `channels_last` of `CNNPrior`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is refused or is no FFDNet.
        """
        network, taken, made = plain_stack(load_state_dict(path), path)
        if made % 4 or taken != made + 1:
            raise ValueError(
                f"{path} takes {taken} and returns {made} channels, and an FFDNet takes 4 C + 1 and returns 4 C; "
                f"is it a file for dncnn?"
            )
        levels = sigma_range or _declared(path) or (0.0, 75 / 255)
        return cls(network, channels=made // 4, sigma_range=levels, **options)

    def estimate(self, x: Tensor, inner: Tensor, sigma: Tensor) -> Tensor:
        padded = _pad_to(inner, 2)
        folded = pixel_unshuffle(padded, 2)
        level = sigma[:, None, None, None].expand(-1, 1, *folded.shape[-2:])
        result = pixel_shuffle(self._run(torch.cat([folded, level], dim=1)), 2)
        return result[..., : x.shape[-2], : x.shape[-1]]


class DRUNet(CNNPrior):
    """DRUNet, a bias-free residual U-Net that sees a map of sigma: `D(x, sigma) = net(x, sigma)`

    (Zhang et al. 2021, "Plug-and-play image restoration with deep denoiser prior", section 4.1), trained up to 50/255.
    """

    name = "drunet"
    stride = 8

    @property
    def receptive_radius(self) -> int:
        """A pixel for every convolution of 3x3, 2^l at scale l, and what the changes of scale join."""
        blocks = len(self.network.m_body)  # type: ignore[arg-type]
        return 2 + 2 * blocks * (2 * (1 + 2 + 4) + 8) + 2 * (self.stride - 1)

    @classmethod
    def from_file(cls, path: str | Path, *, sigma_range: tuple[float, float] | None = None, **options: Any) -> Self:
        """Build the network from a file of weights with the names of the published DRUNet (`m_head`, `m_down1`, ...).

        Args:
            path: the file of weights.
            sigma_range: the levels it was trained for; where left out what the file says, else those of the KAIR files.
            options: `precision` and `channels_last` of `CNNPrior`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is refused or is no DRUNet.
        """
        state = load_state_dict(path)
        head, tail = state.get("m_head.weight"), state.get("m_tail.weight")
        if head is None or tail is None or head.ndim != 4 or tail.ndim != 4:
            raise ValueError(f"{path} does not fit DRUNet: it lacks 'm_head.weight' or 'm_tail.weight'.")
        if head.shape[1] != tail.shape[0] + 1:
            raise ValueError(
                f"{path} takes {head.shape[1]} and returns {tail.shape[0]} channels, and a DRUNet takes one more than "
                f"it returns, for the noise level."
            )
        widths = [head.shape[0]]
        for level in (1, 2, 3):
            stride = [v for k, v in state.items() if k.startswith(f"m_down{level}.") and ".res." not in k]
            widths.append(stride[0].shape[0] if stride else widths[-1])
        blocks = sum(1 for key in state if key.startswith("m_body.") and key.endswith(".res.0.weight"))
        # Layers draw their first weights, all replaced by fill, from the global random state.
        with torch.random.fork_rng(devices=[]):
            network = DRUNetwork(tail.shape[0], widths, max(blocks, 1))
        fill(network, state, path)
        levels = sigma_range or _declared(path) or (0.0, 50 / 255)
        return cls(network, channels=tail.shape[0], sigma_range=levels, **options)

    def estimate(self, x: Tensor, inner: Tensor, sigma: Tensor) -> Tensor:
        padded = _pad_to(inner, 8)
        level = sigma[:, None, None, None].expand(-1, 1, *padded.shape[-2:])
        return self._run(torch.cat([padded, level], dim=1))[..., : x.shape[-2], : x.shape[-1]]


class _ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.res = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.res(h)


class DRUNetwork(nn.Module):
    """The network of DRUNet under its published parameter names.

    Args:
        channels: image channels; one more comes in, the map of sigma.
        widths: feature channels of the four scales.
        blocks: residual blocks per scale on each way.
    """

    def __init__(self, channels: int = 3, widths: list[int] | None = None, blocks: int = 4) -> None:
        super().__init__()
        widths = widths or [64, 128, 256, 512]
        self.m_head = nn.Conv2d(channels + 1, widths[0], 3, padding=1, bias=False)
        for level in (1, 2, 3):
            fine, coarse = widths[level - 1], widths[level]
            down = [*(_ResBlock(fine) for _ in range(blocks)), nn.Conv2d(fine, coarse, 2, stride=2, bias=False)]
            up = [nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False), *(_ResBlock(fine) for _ in range(blocks))]
            setattr(self, f"m_down{level}", nn.Sequential(*down))
            setattr(self, f"m_up{level}", nn.Sequential(*up))
        self.m_body = nn.Sequential(*(_ResBlock(widths[3]) for _ in range(blocks)))
        self.m_tail = nn.Conv2d(widths[0], channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels + 1, H, W), H and W multiples of 8, to (b, channels, H, W)."""
        skips = [self.m_head(x)]
        for level in (1, 2, 3):
            skips.append(getattr(self, f"m_down{level}")(skips[-1]))
        h = self.m_body(skips[-1])
        for level in (3, 2, 1):
            h = getattr(self, f"m_up{level}")(h + skips[level])
        return self.m_tail(h + skips[0])


class _Stack(nn.Module):
    """Convolutions with ReLU between them, the parameters named `model.0`, `model.2`, ... as in the KAIR files."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        interleaved: list[nn.Module] = [layers[0]]
        for layer in layers[1:]:
            interleaved += [nn.ReLU(), layer]
        self.model = nn.Sequential(*interleaved)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _reach(network: nn.Module) -> int:
    """Pixels that a stack of convolutions looks to each side."""
    return sum(layer.kernel_size[0] // 2 for layer in network.modules() if isinstance(layer, nn.Conv2d))


def _depth(state: Mapping[str, Tensor]) -> int:
    return sum(1 for key in state if re.fullmatch(r"model\.\d+\.weight", key))


def plain_stack(state: Mapping[str, Tensor], path: str | Path) -> tuple[nn.Module, int, int]:
    """A stack of convolutions with the given weights, and the channels that it takes and returns.

    Raises:
        ValueError: the names are not those of a stack `model.0`, `model.2`, ... of square convolutions with biases.
    """
    depth = _depth(state)
    layers: list[nn.Conv2d] = []
    for n in range(depth):
        weight = state.get(f"model.{2 * n}.weight")
        if weight is None or weight.ndim != 4 or weight.shape[-1] != weight.shape[-2]:
            raise ValueError(
                f"{path} is no plain stack of convolutions: it lacks 'model.{2 * n}.weight' or that is no square "
                f"kernel; files with batch normalisation must be merged first."
            )
        made, taken, width, _ = weight.shape
        if layers and layers[-1].out_channels != taken:
            raise ValueError(
                f"{path} does not fit together: 'model.{2 * n}.weight' takes {taken} channels and the layer before it "
                f"returns {layers[-1].out_channels}."
            )
        # A layer draws its first weights, all replaced by fill, from the global random state.
        with torch.random.fork_rng(devices=[]):
            layers.append(nn.Conv2d(taken, made, width, padding=width // 2))
    if depth < 2:
        raise ValueError(f"{path} does not fit: it has no weights named 'model.0.weight', 'model.2.weight', ...")
    network = _Stack(layers)
    fill(network, state, path)
    return network, layers[0].in_channels, layers[-1].out_channels


def _pad_to(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sizes are multiples of `multiple`."""
    height, width = x.shape[-2:]
    return pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
