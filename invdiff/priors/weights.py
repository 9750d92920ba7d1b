"""Read and write weights without ever running code from the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["load_prior", "load_state_dict", "save_prior"]


def save_prior(path: Path, state: Mapping[str, Tensor], network: dict[str, Any], card: dict[str, Any]) -> None:
    """Write weights in half precision with their network configuration and model card in the file's header."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in state.items()}
    save_file(tensors, path, metadata={"network": json.dumps(network), "card": json.dumps(card)})
