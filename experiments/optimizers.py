"""Which optimizer steps which weights, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .muon import Muon

__all__ = ["learning_rate", "optimizers"]


def learning_rate(step: int, cfg: Mapping[str, Any]) -> float:
    """The learning rate of a step: a linear warm-up, then the schedule, which ends at zero after `steps`.

    "linear" is constant until the last `decay` steps and falls linearly over them, so that a run can be prolonged:
    nothing before the decay depends on `steps`. "cosine" falls along half a cosine from the end of the warm-up on.
    """
    lr, warm = float(cfg["lr"]), min(1.0, (step + 1) / cfg["warmup"])
    if cfg["schedule"] == "cosine":
        whole = max(1, cfg["steps"] - cfg["warmup"])
        done = min(1.0, max(0.0, (step - cfg["warmup"]) / whole))
        return lr * warm * (1 + math.cos(math.pi * done)) / 2
    return lr * min(warm, max(0.0, (cfg["steps"] - step) / cfg["decay"]))


def optimizers(network: nn.Module, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the inner convolutions and AdamW for the rest.

    The first and the last convolution, whose rows or columns are image channels, stay with AdamW, as do vectors.
    """
    kernels = [value for value in network.parameters() if value.ndim == 4]
    inner = kernels[1:-1] if name == "muon" else []
    chosen = {id(value) for value in inner}
    rest = [value for value in network.parameters() if id(value) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.995), weight_decay=weight_decay)
    return [Muon(inner, lr), adamw] if inner else [adamw]
