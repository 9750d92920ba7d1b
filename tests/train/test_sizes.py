"""Networks of several sizes: what is trained, what is measured, and the table of it in the model card."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from benchmarks import rows, sizes
from benchmarks.denoising import mean_psnr
from experiments.objective import build
from experiments.output import write_prior
from experiments.settings import check
from invdiff.priors import FunctionPrior, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The trainings that were begun, none of which runs."""
    found: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        found.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_what_is_trained_already_is_left(commands: list[list[str]], tmp_path: Path) -> None:
    standing = sizes.weights(tmp_path, "as it ships")
    standing.parent.mkdir()
    standing.touch()
    sizes.train(tmp_path, tmp_path)
    assert len(commands) == len(sizes.SIZES) - 1
    assert not any(word.endswith("/as_it_ships") for command in commands for word in command)


def test_the_commands_are_settings_of_the_training_program(commands: list[list[str]], tmp_path: Path) -> None:
    sizes.train(tmp_path, tmp_path)
    for command, (widths, steps) in zip(commands, sizes.SIZES.values(), strict=True):
        assert command[1:5] == ["-m", "experiments.train", "--config-name", "size"]
        with initialize_config_dir(str(ROOT / "experiments" / "training"), version_base=None):
            found: Any = OmegaConf.to_container(compose("size", command[5:]), resolve=True)
        check(found)
        assert (tuple(found["network"]["widths"]), found["steps"]) == (widths, steps)


def test_a_training_that_fails_ends_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 130))
    with pytest.raises(SystemExit) as stopped:
        sizes.train(tmp_path, tmp_path)
    assert stopped.value.code == 130


def test_every_network_is_measured(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "SIZES", {"a b": ((4, 8), 3), "c": ((8, 8), 2), "c, longer": ((8, 8), 4)})
    with pytest.raises(SystemExit, match="Not trained yet: a b; c; c, longer"):
        sizes.measure([], tmp_path, 1)
    for name, (widths, steps) in sizes.SIZES.items():
        objective = build(settings(f"network.widths={list(widths)}"))
        path = sizes.weights(tmp_path, name)
        path.parent.mkdir()
        state = {key: value.detach() for key, value in objective.network.named_parameters()}
        write_prior(objective, path, state, {"parametrization": "F", "steps": steps})
    monkeypatch.setattr(sizes, "photograph", lambda: torch.rand(1, 3, 32, 32))
    monkeypatch.setattr(torch, "compile", lambda network: network)
    file = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
    found = {row["network"]: row for row in sizes.measure([file], tmp_path, 1)}
    assert list(found) == ["a b", "c", "c, longer", "natural", "drunet"]
    assert [row.get("steps") for row in found.values()] == ["3", "2", "4", "", None]
    assert found["c"]["step_s"] == found["c, longer"]["step_s"] != ""
    assert found["a b"]["widths"] == "4 8"
    assert int(found["natural"]["parameters"]) == sum(p.numel() for p in load("natural").network.parameters())
    for name, prior in {"a b": load(f"natural:{sizes.weights(tmp_path, 'a b')}"), "natural": load("natural")}.items():
        assert [found[name][f"psnr_{level}"] for level in (15, 25, 50)] == [
            f"{mean_psnr(prior, [file], level):.3f}" for level in (15, 25, 50)
        ]
    assert len(sizes.draw(list(found.values())).axes) == 3
    monkeypatch.setattr(sizes, "SIZES", {"a b": ((4, 8), 4)})
    with pytest.raises(SystemExit, match="was trained for 3 steps, not 4: remove its folder"):
        sizes.measure([file], tmp_path, 1)


def test_the_mean_psnr_of_what_denoises_nothing_is_that_of_the_noise(tmp_path: Path) -> None:
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for number, path in enumerate(files):
        Image.fromarray(np.full((128, 128, 3), 100 * number, dtype=np.uint8)).save(path)
    found = mean_psnr(FunctionPrior(lambda x, sigma: x), files, 51)
    assert found == pytest.approx(20 * math.log10(5), abs=0.05)
    # Each image has noise of its own.
    alone = [mean_psnr(FunctionPrior(lambda x, sigma: x), [path], 51) for path in files]
    assert found != pytest.approx(sum(alone) / 2, abs=1e-6)


def test_the_card_holds_the_table() -> None:
    found = rows.read(sizes.RESULTS)
    assert [row["network"] for row in found] == [*sizes.SIZES, sizes.SHIPPED, sizes.LARGEST]
    assert "\n".join(sizes.table(found)) in (ROOT / "docs" / "natural.md").read_text()


def test_minutes_are_steps_times_the_seconds_of_one() -> None:
    row = {"network": "half", "widths": "4 8", "parameters": "1250000", "steps": "90", "step_s": "2"}
    row |= {"forward_s": "0.0304", "psnr_15": "33", "psnr_25": "31.126", "psnr_50": "28.1"}
    assert sizes.table([row, {"network": "drunet"}])[2:] == [
        "| half | 4 8 | 1.2 | 90 | 3 | 30 | 33.00 | 31.13 | 28.10 |"
    ]
