"""Train a prior on a folder of images: `python -m experiments.train data=DIR`.

A diffusion prior (network=unet) or a denoiser (network=dncnn, ffdnet or drunet). The settings, each with its meaning,
are in `experiments/training/train.yaml`; `docs/training.md` is a page on how to use them. A run that was stopped or
killed goes on when the same command is given again. Raising or lowering `steps` between two runs moves the start of the
linear decay and nothing before it.
"""

from __future__ import annotations

import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from .loop import Diverged, run
from .settings import SettingsError

__all__ = ["main", "train"]


def train(cfg: DictConfig) -> bool:
    """Run the training that the settings describe; False where it was stopped before its end."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return run(settings)


@hydra.main(version_base=None, config_path="training", config_name="train")
def main(cfg: DictConfig) -> None:
    try:
        finished = train(cfg)
    except (SettingsError, Diverged) as error:
        raise SystemExit(str(error)) from error
    if not finished:
        sys.exit(130)


if __name__ == "__main__":
    main()
