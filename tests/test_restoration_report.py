"""The report on photographs: its crops, solvers at equal cost, intervals paired over crops."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import restoration
from benchmarks.restoration import (
    COLUMNS,
    FIGURES,
    RESULTS,
    STEP_COST,
    bootstrap,
    crop,
    images,
    main,
    measure,
    read,
    short,
    table,
    write,
)
from invdiff.priors import Prior


def test_the_crop_is_where_the_image_varies_most():
    image = torch.full((1, 3, 40, 60), 0.5)
    image[..., 26:, 36:] += 0.3 * torch.rand(1, 3, 14, 24, generator=torch.Generator().manual_seed(0))
    top, left, part = crop(image, 16)
    assert (top, left) == (18, 33)
    assert torch.equal(part, image[0, :, 18:34, 33:49])
    with pytest.raises(ValueError, match="has no crop of 64"):
        crop(image, 64)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    generator = np.random.default_rng(0)
    for name in "abcde":
        Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path / f"{name}.png")
    return path


def test_more_images_are_added_to_fewer(folder, tmp_path):
    names = [name for name, _ in images([folder], 5)]
    assert sorted(names) == [f"pictures/{letter}" for letter in "abcde"]
    assert [name for name, _ in images([folder], 2)] == names[:2]
    with pytest.raises(SystemExit, match="No PNG images"):
        images([tmp_path / "none"], 2)


def test_a_measurement_has_its_own_noise_of_the_stated_size_and_is_the_same_again():
    truth = torch.full((3, 64, 64), 0.5)
    a, again, b = (measure(name, "gray", truth, 0.02) for name in ("one", "one", "two"))
    assert torch.equal(a.y, again.y)
    assert not torch.equal(a.y, b.y)
    assert float((a.y - a.operator(truth[None])[0]).std()) == pytest.approx(0.02, rel=0.05)


class Shrinkage(Prior):
    """The exact denoiser of independent pixels of mean 0.5 and std 0.25."""

    name, channels, sigma_range, differentiable = "shrinkage", 3, (0.0, 50.0), True

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return 0.5 + (x - 0.5) / (1 + 16 * sigma.reshape(-1, 1, 1, 1) ** 2)


def test_solvers_run_at_the_cost_of_kps_and_what_stands_is_not_run_again(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    words = [str(folder), "--out", str(path), "--size", "24", "--draws", "19", "--micro-batch", "19"]
    words += ["--tasks", "gray", "--solvers", "ddrm", "pigdm"]
    monkeypatch.setattr(restoration.priors, "load", lambda name: {"natural": Shrinkage()}[name])
    main([*words, "--crops", "1"])
    rows = read(path)
    assert [(row["solver"], row["mode"]) for row in rows] == [(name, "equal") for name in ("kps", "ddrm", "pigdm")]
    cost = int(rows[0]["cost"])
    for row in rows[1:]:
        assert cost <= int(row["cost"]) < cost + STEP_COST[row["solver"]]
        assert int(row["cost"]) == int(row["steps"]) * STEP_COST[row["solver"]]
        assert int(row["cost"]) == int(row["nfe"]) + 2 * int(row["nfe_backward"])
    assert list(rows[0]) == list(COLUMNS)
    assert all(0 <= float(row["coverage"]) <= 1 for row in rows)

    def refuse(*_: object) -> None:
        raise AssertionError("was run again")

    monkeypatch.setattr(restoration, "run_one", refuse)
    capsys.readouterr()
    main([*words, "--crops", "1", "--resume"])
    assert read(path) == rows
    assert capsys.readouterr().out.splitlines() == table(rows)
    with pytest.raises(AssertionError, match="was run again"):
        main([*words, "--crops", "2", "--resume"])

    monkeypatch.undo()
    monkeypatch.setattr(restoration.priors, "load", lambda name: {"natural": Shrinkage()}[name])
    rows[1]["settings"] = "DDRM(steps=1)"
    write(rows, path)
    main([*words, "--crops", "1", "--resume"])
    again = {row["solver"]: row for row in read(path)}
    assert len(again) == len(read(path)) == 3
    assert again["kps"] == rows[0]
    assert f"steps={cost}," in again["ddrm"]["settings"]


def test_differences_to_kps_are_paired_over_the_crops():
    def row(image: str, solver: str, score: float) -> dict[str, str]:
        head = {"image": image, "task": "blur", "sigma_y": "0.02", "size": "64", "solver": solver, "mode": "equal"}
        return head | {"steps": "10", "cost": "30"} | dict.fromkeys(FIGURES, str(score))

    rows = [row(f"{k}", "kps", 10.0 * k) for k in range(4)]
    rows += [row(f"{k}", "ddrm", 10.0 * k + 1) for k in range(4)]
    rows.append(row("without kps", "ddrm", 1000.0))
    lines = table(rows)
    assert lines[2].startswith("| blur 0.02 | kps | 4 | 10 | 30 | 15.0000 | 15.000 |")
    # However far the crops lie apart, the difference is 1 on each.
    assert "| ddrm | 4 | 10 | 30 | 16.0000 [+1.0000, +1.0000] |" in lines[3]


def test_the_bootstrap_interval_is_that_of_the_mean():
    differences = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 2
    low, high = bootstrap(differences)
    error = float(differences.std()) / 20
    assert low == pytest.approx(float(differences.mean()) - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(float(differences.mean()) + 1.96 * error, abs=0.3 * error)


def test_the_table_of_the_docs_is_that_of_the_tracked_rows():
    page = (Path(__file__).parent.parent / "docs" / "kps.md").read_text()
    rows = [row for row in read(RESULTS) if row["size"] == "48"]
    assert "\n".join(short(rows, 48)) in page
    # Every crop with every task and solver, so that means are over the same ones.
    names = {row["solver"] for row in rows}
    every = {(row["image"], row["task"], row["solver"]) for row in rows}
    assert every == set(itertools.product({row["image"] for row in rows}, restoration.TASKS, names))
