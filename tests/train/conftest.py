"""Small settings of the training program, composed from its own configuration, and folders of images for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

CONF = Path(__file__).resolve().parents[2] / "experiments" / "training"
TINY = {
    "unet": ["network.widths=[8,12]", "network.blocks=1", "network.embedding=16"],
    "dncnn": ["network.depth=3", "network.width=8"],
    "ffdnet": ["network.depth=3", "network.width=8"],
    "drunet": ["network.widths=[4,4,4,8]", "network.blocks=1"],
}
SMALL = (
    "crop=16 batch=2 steps=6 warmup=2 decay=2 lr=1e-3 ema=0.9 checkpoint_every=2 validate_every=0 sheets=0 heldout=1"
)

Settings = Callable[..., dict[str, Any]]


def small(folder: Path, *changes: str, network: str = "unet") -> list[str]:
    """The command line of a run that takes a second."""
    places = [f"data={folder / 'photographs'}", f"out={folder / 'out'}", f"cache={folder / 'cache'}"]
    fixed = ["device=cpu", "precision=float32", "validation.crops=2", "validation.size=16", f"network={network}"]
    return [*places, *fixed, *SMALL.split(), *TINY[network], *changes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photographs, of which two are tiles of one."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    random = np.random.default_rng(0)
    for name in ("a__one__320_00", "a__one__320_01", "b__two__320_00", "b_three"):
        Image.fromarray(random.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(photographs / f"{name}.png")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    """Composes settings of a small run in `folder`, with changes as on the command line."""

    def composed(*changes: str, network: str = "unet", config: str = "train") -> dict[str, Any]:
        with initialize_config_dir(str(CONF), version_base=None):
            cfg = compose(config, small(folder, *changes, network=network))
        found: Any = OmegaConf.to_container(cfg, resolve=True)
        return found

    return composed


@pytest.fixture
def command_line(folder: Path) -> Callable[..., list[str]]:
    """The same settings as words of a command line."""
    return lambda *changes, network="unet": small(folder, *changes, network=network)
