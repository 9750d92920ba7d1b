"""LPIPS with the weights that the user gives: how different two images look to AlexNet."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from invdiff.priors.weights import load_state_dict

__all__ = ["LPIPS"]

# The inputs' mean and standard deviation, where images are in [-1, 1], that the published weights were fitted with.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Of AlexNet's five convolutions: the name in the file, stride, padding, and whether the maximum of 3 x 3 comes before.
_LAYERS = (
    ("net.slice1.0", 4, 2, False),
    ("net.slice2.3", 1, 2, True),
    ("net.slice3.6", 1, 1, True),
    ("net.slice4.8", 1, 1, False),
    ("net.slice5.10", 1, 1, False),
)
_LEAST = 35


class LPIPS:
    """Learned perceptual image patch similarity (Zhang, Isola, Efros, Shechtman and Wang 2018, eq. 1).

        d(x, y) = sum_l 1 / (H_l W_l) sum_hw || w_l * (f_l(x) - f_l(y)) ||^2

    with the features f_l after AlexNet's five convolutions, each pixel's scaled to length 1, and one weight per channel
    in place of w_l^2, as the authors' code has it.

    Args:
        path: the state of `lpips.LPIPS(net="alex")`, saved with torch.save or as safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is refused, or is not that state.
    """

    def __init__(self, path: str | Path) -> None:
        state = load_state_dict(path)
        wanted = [f"{name}.{part}" for name, *_ in _LAYERS for part in ("weight", "bias")]
        wanted += [f"lin{level}.model.1.weight" for level in range(len(_LAYERS))]
        missing = [name for name in wanted if name not in state]
        if missing:
            raise ValueError(f'{path} lacks {missing[0]}: expected the state of lpips.LPIPS(net="alex").')
        self.state = {name: state[name].float() for name in wanted}

    def __call__(self, image: Tensor, truth: Tensor) -> float:
        """The distance of two images (C, H, W), clipped to [0, 1]; gray ones as three equal channels.

        Raises:
            ValueError: they are smaller than AlexNet takes.
        """
        if min(truth.shape[-2:]) < _LEAST:
            size = f"{truth.shape[-2]} x {truth.shape[-1]}"
            raise ValueError(f"LPIPS needs images of at least {_LEAST} x {_LEAST} pixels, got {size}: crop less.")
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = torch.stack([picture.float().clamp(0, 1).expand(3, -1, -1) for picture in (image, truth)])
        x = (2 * x - 1 - shift) / scale
        distance = 0.0
        for level, (name, stride, padding, pooled) in enumerate(_LAYERS):
            x = max_pool2d(x, 3, 2) if pooled else x
            x = conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride, padding).relu()
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            weights = self.state[f"lin{level}.model.1.weight"]
            distance += float(conv2d((unit[:1] - unit[1:]).square(), weights).mean())
        return distance
