"""The U-Net of guided diffusion ("ADM") under its published parameter names: published weights load as they are.

Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis": residual blocks modulated by the time step,
self-attention at the coarse scales, down- and upsampling inside residual blocks. The network takes images in [-1, 1]
scaled as x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps and a time step from 0 to 999, and returns eps; a learned
variance comes in as many channels again. `load_adm` puts a checkpoint into the prior slot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.priors.base import Prior
from invdiff.priors.weights import fill, load_state_dict

__all__ = ["ADM", "PUBLISHED", "adm_settings", "load_adm"]

# The settings of two published checkpoints: 256x256_diffusion_uncond.pt of guided-diffusion (ImageNet), and the network
# of 10 million training images that came with DPS (faces). Attention stands by the downsampling factor where it acts.
PUBLISHED: dict[str, dict[str, Any]] = {
    "256x256_diffusion_uncond": {
        "width": 256,
        "multipliers": (1, 1, 2, 2, 4, 4),
        "blocks": 2,
        "attention": (8, 16, 32),
        "returned": 6,
    },
    "ffhq_10m": {
        "width": 128,
        "multipliers": (1, 1, 2, 2, 4, 4),
        "blocks": 1,
        "attention": (16,),
        "returned": 6,
    },
}


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _in_float32(norm: nn.Module, h: Tensor) -> Tensor:
    # The sums of a group run over the whole image; bfloat16 has too few bits for them.
    with torch.autocast(h.device.type, enabled=False):
        return norm(h if h.dtype == torch.float64 else h.float()).to(h.dtype)


def _zeroed(layer: nn.Module) -> nn.Module:
    """The layer at zero, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _Sequential(nn.Sequential):
    """Blocks in a row; those that take the embedding of the time step receive it."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for block in self:
            h = block(h, embedding) if isinstance(block, _ResBlock) else block(h)
        return h


class _Resize(nn.Module):
    """Halve (mean of 2x2 or strided convolution `op`) or double (nearest neighbour, convolution `conv`) the size."""

    def __init__(self, channels: int, up: bool, learned: bool) -> None:
        super().__init__()
        self.up = up
        if learned and up:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        elif learned:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        if self.up:
            h = nn.functional.interpolate(h, scale_factor=2, mode="nearest")
            return self.conv(h) if hasattr(self, "conv") else h
        return self.op(h) if hasattr(self, "op") else nn.functional.avg_pool2d(h, 2)


class _ResBlock(nn.Module):
    def __init__(
        self, taken: int, made: int, embedding: int, *, scale_shift: bool, resize: _Resize | None = None
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resize = resize
        self.in_layers = nn.Sequential(_norm(taken), nn.SiLU(), nn.Conv2d(taken, made, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * made if scale_shift else made))
        # Training drops features in the place of Identity, which keeps the number of the layer after it.
        last = _zeroed(nn.Conv2d(made, made, 3, padding=1))
        self.out_layers = nn.Sequential(_norm(made), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if taken == made else nn.Conv2d(taken, made, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = act(_in_float32(norm, x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = conv(h)
        modulation = self.emb_layers(embedding)[:, :, None, None].to(h.dtype)
        norm, act, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = _in_float32(norm, h) * (1 + scale) + shift
        else:
            h = _in_float32(norm, h + modulation)
        return self.skip_connection(x) + conv(act(h))


class _Attention(nn.Module):
    """Self-attention over all pixels. `new_order` says how the 3 C channels of qkv are laid out.

    False, the layout of the published checkpoints: head by head, each with its q, k and v. True: all q, all k, all v.
    """

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        qkv = self.qkv(_in_float32(self.norm, flat))
        shape = (batch, self.heads, channels // self.heads, height * width)
        if self.new_order:
            parts = [part.reshape(shape) for part in qkv.chunk(3, dim=1)]
        else:
            parts = list(qkv.reshape(batch, self.heads, -1, height * width).chunk(3, dim=2))
        query, key, value = (part.transpose(2, 3) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        out = self.proj_out(mixed.transpose(2, 3).reshape(batch, channels, height * width))
        return x + out.reshape(x.shape)


class ADM(nn.Module):
    """The U-Net of guided diffusion: images (b, C, H, W) in [-1, 1] and time steps (b,) to eps (Dhariwal, Nichol 2021).

    H and W are multiples of `stride`.

    Args:
        channels: image channels C.
        width: features at the finest scale, a multiple of 32.
        multipliers: features of each scale over `width`, finest first; each scale halves the resolution.
        blocks: residual blocks per scale on the way down; one more on the way up.
        attention: downsampling factors at which blocks are followed by self-attention: attention at 32, 16 and 8 pixels
            of a network for 256 is at the factors 8, 16 and 32.
        returned: channels that come out; 2 C with a learned variance.
        heads: attention heads where `head_channels` is None.
        head_channels: channels of each head.
        scale_shift: the embedding scales and shifts the features; else it is added to them.
        resblock_updown: the size changes inside residual blocks; else in convolutions of their own.
        new_order: layout of the attention, see the module's `_Attention`; True for checkpoints made with
            `use_new_attention_order`.
        classes: number of class labels; None for an unconditional network.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[float] = (1, 1, 2, 2, 4, 4),
        blocks: int = 1,
        attention: Sequence[int] = (16,),
        returned: int | None = None,
        heads: int = 4,
        head_channels: int | None = 64,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        new_order: bool = False,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.stride = 2 ** (len(multipliers) - 1)
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, embedding)

        def res(taken: int, made: int, resize: _Resize | None = None) -> _ResBlock:
            return _ResBlock(taken, made, embedding, scale_shift=scale_shift, resize=resize)

        def attend(count: int) -> _Attention:
            if count % (head_channels or heads):
                raise ValueError(
                    f"{count} channels of attention do not divide into heads of {head_channels} channels "
                    f"({heads} heads where None): give head_channels or heads of the checkpoint."
                )
            return _Attention(count, heads if head_channels is None else count // head_channels, new_order)

        def change(count: int, up: bool) -> nn.Module:
            if resblock_updown:
                return res(count, count, _Resize(count, up, learned=False))
            return _Resize(count, up, learned=True)

        widths = [int(factor * width) for factor in multipliers]
        now = widths[0]
        self.input_blocks = nn.ModuleList([_Sequential(nn.Conv2d(channels, now, 3, padding=1))])
        skips = [now]
        for level, made in enumerate(widths):
            for _ in range(blocks):
                layers: list[nn.Module] = [res(now, made)]
                now = made
                if 2**level in attention:
                    layers.append(attend(now))
                self.input_blocks.append(_Sequential(*layers))
                skips.append(now)
            if level < len(widths) - 1:
                self.input_blocks.append(_Sequential(change(now, up=False)))
                skips.append(now)
        self.middle_block = _Sequential(res(now, now), attend(now), res(now, now))
        self.output_blocks = nn.ModuleList()
        for level, made in reversed(list(enumerate(widths))):
            for k in range(blocks + 1):
                layers = [res(now + skips.pop(), made)]
                now = made
                if 2**level in attention:
                    layers.append(attend(now))
                if level and k == blocks:
                    layers.append(change(now, up=True))
                self.output_blocks.append(_Sequential(*layers))
        last = _zeroed(nn.Conv2d(widths[0], returned or channels, 3, padding=1))
        self.out = nn.Sequential(_norm(now), nn.SiLU(), last)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output for x (b, C, H, W), time steps (b,) that need not be whole, and class labels (b,)."""
        embedding = self.time_embed(_sinusoids(time, self.width).to(self.time_embed[0].weight.dtype))  # type: ignore[arg-type]
        if label is not None:
            embedding = embedding + self.label_emb(label)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        norm, act, conv = self.out
        return conv(act(_in_float32(norm, h)))


def _sinusoids(time: Tensor, width: int) -> Tensor:
    """cos and sin of the time at frequencies from 1 down to nearly 1/10000 (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    phase = time.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
    waves = torch.cat([phase.cos(), phase.sin()], dim=1)
    return nn.functional.pad(waves, (0, width % 2))


def adm_settings(state: Mapping[str, Tensor], path: str | Path) -> dict[str, Any]:
    """The arguments of `ADM` that the names and shapes of a state dict decide: all but heads and `new_order`.

    Raises:
        ValueError: these are no names of a guided-diffusion network.
    """

    def rows(key: str) -> int:
        if key not in state:
            raise ValueError(
                f"{path} does not fit ADM: it lacks {key!r}; is it another architecture? Build the network yourself "
                f"and use invdiff.priors.from_network."
            )
        return state[key].shape[0]

    def count(side: str) -> int:
        return 1 + max((int(m[1]) for key in state if (m := re.match(rf"{side}_blocks\.(\d+)\.", key))), default=-1)

    embedding = rows("time_embed.0.weight")
    width = state["time_embed.0.weight"].shape[1]
    # A block of the way up that changes the size (a second residual block, or `conv`) closes its scale.
    closing = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.0)\.weight")
    closed = [int(m[1]) for key in state if (m := closing.fullmatch(key))]
    rows("input_blocks.0.0.weight")
    total = count("output")
    blocks = min(closed, default=total - 1)
    if embedding != 4 * width or blocks < 1 or total % (blocks + 1) or count("input") != total:
        raise ValueError(f"{path} does not fit ADM: its blocks do not form a U-Net of equal scales.")
    first = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(total // (blocks + 1))]
    features = [rows(f"{name}.0.out_layers.3.weight") for name in first]
    return {
        "channels": state["input_blocks.0.0.weight"].shape[1],
        "width": width,
        "multipliers": tuple(int(n / width) if n % width == 0 else n / width for n in features),
        "blocks": blocks,
        "attention": tuple(2**level for level, name in enumerate(first) if f"{name}.1.qkv.weight" in state),
        "returned": rows("out.2.weight"),
        "scale_shift": rows(f"{first[0]}.0.emb_layers.1.weight") == 2 * features[0],
        "resblock_updown": not any(key.endswith(".op.weight") for key in state),
        "classes": rows("label_emb.weight") if "label_emb.weight" in state else None,
    }


def load_adm(
    path: str | Path,
    *,
    head_channels: int | None = 64,
    heads: int = 4,
    new_order: bool = False,
    label: int | None = None,
    betas: Tensor | None = None,
    sha256: str | None = None,
    precision: str = "auto",
    self_test: bool = True,
) -> Prior:
    """A guided-diffusion checkpoint, such as `256x256_diffusion_uncond.pt` or DPS's `ffhq_10m.pt`, in the prior slot.

    Channels, widths, blocks, attention, labels and a learned variance are read off the names and shapes in the file;
    the other settings default to those of the published files.

    Args:
        path: the state dict, `.pt` or `.safetensors`.
        head_channels: channels of each attention head; None for a network with a fixed number of `heads`.
        heads: attention heads where head_channels is None.
        new_order: True for checkpoints made with `use_new_attention_order`.
        label: the class to draw, for a network that wants one.
        betas: variances of the steps, (T,); the 1,000 from 1e-4 to 0.02 (Ho et al. 2020) where left out.
        sha256: the expected SHA-256 of the file.
        precision: "auto", "float32" or "bfloat16".
        self_test: denoise a built-in image and warn if the settings look wrong.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is refused, does not fit, or wants a label.
    """
    from invdiff.priors.network import from_network

    state = load_state_dict(path, sha256=sha256)
    settings = adm_settings(state, path)
    classes = settings["classes"]
    if (label is None) != (classes is None) or (label is not None and not 0 <= label < (classes or 0)):
        wanted = "takes no label" if classes is None else f"wants a label from 0 to {classes - 1}"
        raise ValueError(f"label is {label} and the network of {path} {wanted}.")
    with torch.device("meta"):
        network = ADM(**settings, head_channels=head_channels, heads=heads, new_order=new_order)
    fill(network, state, path)
    channels, returned = settings["channels"], settings["returned"]
    prior = from_network(
        network if label is None else _Labelled(network, label),
        predicts="eps",
        betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64) if betas is None else betas,
        channels=channels,
        learned_sigma=returned == 2 * channels,
        multiple=network.stride,
        precision=precision,
        self_test=self_test,
        name=f"adm:{Path(path).stem}",
    )
    prior.settings = settings | {
        "head_channels": head_channels,
        "heads": heads,
        "new_order": new_order,
        "label": label,
    }
    return prior


class _Labelled(nn.Module):
    """A conditional network that is always asked for one class."""

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__()
        self.network = network
        self.label = label

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.network(x, time, torch.full((len(x),), self.label, device=x.device))
