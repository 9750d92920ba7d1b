"""Draws that failed are left out of a restoration, its figures and its files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import Posterior, priors
from invdiff.report import write_restoration
from invdiff.restoration import restore
from invdiff.solvers import DDRM

IMAGE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)


class LosesTheFirst(priors.Prior):
    """Spoils the first member of every micro-batch."""

    name = "loses"

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        x0 = x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        x0[0] = torch.nan
        return x0


@pytest.mark.parametrize("draws", [2, 4])
@pytest.mark.parametrize("kept", [False, True])
def test_draws_that_failed_are_left_out_of_everything(tmp_path: Path, draws: int, kept: bool) -> None:
    where = {"store": tmp_path / "run"} if kept else {}
    settings = {"prior": LosesTheFirst(), "solver": DDRM(steps=2), "draws": draws, "micro_batch": 4, "progress": False}
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        result = restore(IMAGE, sigma=0.1, truth=IMAGE, **settings, **where)
    with warnings.catch_warnings(action="error"):
        assert result.draws.shape == (draws - 1, *IMAGE.shape)
        assert result.draws.max() > 0
    assert (result.metrics["draws"], result.metrics["failed"]) == (draws - 1, 1)
    assert (result.std is None) == (draws == 2)
    assert ("mean_std" in result.metrics) == ("spread_ratio" in result.metrics) == (draws > 2)
    folder = tmp_path / "out"
    folder.mkdir()
    write_restoration(folder, result, {}, keep_posterior=True)
    assert [path.name for path in sorted((folder / "draws").iterdir())] == [f"{k:03}.png" for k in range(1, draws)]
    assert (folder / "std.png").exists() == (draws > 2)
    if kept:
        assert result.posterior._draws is None, "the draws are never all in memory"
    saved = Posterior.load(folder / "posterior.safetensors")
    assert saved.draws.isnan().flatten(1).all(1).tolist() == [True] + [False] * (draws - 1)
