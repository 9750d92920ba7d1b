"""The training of the prior: whole photographs are held out, and a run that was stopped goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from experiments.train import Crops, draw_sigma, hold_out, learning_rate, source_of, train
from invdiff.priors import load_natural
from invdiff.priors.weights import load_state_dict


@pytest.fixture
def folder(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    random = np.random.default_rng(0)
    for name in ("a__one__320_00", "a__one__320_01", "b__two__320_00", "b_three"):
        Image.fromarray(random.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(photographs / f"{name}.png")
    (tmp_path / "heldout.txt").write_text("b_three.png\n")
    return tmp_path


def config(folder, out: str, steps: int, **changes):
    return OmegaConf.create(
        {
            "data": str(folder / "photographs"),
            "out": str(folder / out),
            "heldout": str(folder / "heldout.txt"),
            "seed": 0,
            "device": "cpu",
            "network": {"channels": 3, "widths": [8, 12], "blocks": 1, "embedding": 16},
            "sigma_data": 0.25,
            "sigma_range": [0.002, 50.0],
            "crop": 16,
            "batch": 2,
            "steps": steps,
            "warmup": 2,
            "decay": 2,
            "lr": 1e-3,
            "clip": 0.5,
            "ema": 0.9,
            "checkpoint_every": 2,
        }
        | changes
    )


def test_whole_photographs_are_held_out():
    names = [f"x__{photo}__720_{tile:02d}.webp" for photo in "abcdef" for tile in range(5)] + ["y__lone_1.webp"]
    held = hold_out(names, 8)
    assert 8 <= len(held) <= 12
    assert not {source_of(name) for name in held} & {source_of(name) for name in set(names) - set(held)}
    assert held == hold_out(names[::-1], 8)


def test_the_tracked_list_leaks_no_photograph():
    held = (Path(__file__).parent.parent / "experiments" / "heldout.txt").read_text().split()
    assert len(held) == len(set(held)) == 300


def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder, monkeypatch):
    train(config(folder, "whole", 6))
    calls = []
    batch = Crops.batch

    def interrupted(self, size, random):
        calls.append(size)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch(self, size, random)

    monkeypatch.setattr(Crops, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(folder, "cut", 6))
    train(config(folder, "cut", 6))
    assert len(calls) == 4 + 4, "two steps were kept, and the third was done again"
    whole, cut = (load_state_dict(folder / out / "natural.safetensors") for out in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    card = load_natural(folder / "cut" / "natural.safetensors").card
    assert (card["images"], card["sources"]) == (3, ["a", "b"])
    assert str(folder) not in str(card)


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint(folder):
    with pytest.raises(SystemExit, match=r"The loss is (nan|inf) at step \d+: the last good checkpoint is .*last\.pt"):
        train(config(folder, "wild", 40, lr=1e30, clip=1e30, warmup=1))


def test_the_learning_rate_rises_stays_and_falls():
    cfg = config_like(steps=10, warmup=2, decay=4)
    rates = [learning_rate(step, cfg) for step in range(11)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def config_like(**settings):
    return OmegaConf.create({"lr": 1.0} | settings)


def test_noise_levels_stay_in_the_range_and_reach_its_ends():
    sigma = draw_sigma(50_000, 0.002, 50.0, torch.Generator().manual_seed(0))
    assert float(sigma.min()) >= 0.002
    assert float(sigma.max()) <= 50.0
    assert float((sigma > 10).float().mean()) == pytest.approx(0.2 * np.log(5) / np.log(25_000), abs=0.005)
    assert 0.1 < float(sigma.median()) < 0.25
