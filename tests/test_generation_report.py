"""How drawn images are compared with photographs: the halves share nothing, and the distances see what they should."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.generation import distances, gaussian, source, split


def textured(count: int, seed: int) -> torch.Tensor:
    """Images of random flat blocks of four pixels, whose detail is far from Gaussian."""
    values = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return values.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_the_halves_share_no_photograph():
    paths = [Path(f"x__{name}__320_{tile:02d}.webp") for name in "abcde" for tile in range(3)] + [Path("lone_1.webp")]
    first, second = split(paths)
    assert len(first) + len(second) == len(paths)
    assert not {source(path) for path in first} & {source(path) for path in second}
    assert first
    assert second


def test_other_images_of_the_same_kind_are_near_and_gaussian_ones_are_not():
    reference = textured(64, 0)
    same = distances(textured(64, 1), reference)
    other = distances(gaussian(textured(64, 2), 64, seed=3), reference)
    assert same["texture"] < 0.1
    assert other["texture"] > 2 * same["texture"]
    brighter = distances(textured(64, 1) + 0.3, reference)
    assert brighter["patches"] > same["patches"] + 0.5
    assert abs(brighter["texture"] - same["texture"]) < 1e-6, "a patch's mean is no texture"


def test_the_gaussian_process_has_the_mean_and_the_power_of_the_images():
    reference = textured(128, 0)
    drawn = gaussian(reference, 128, seed=1)
    torch.testing.assert_close(drawn.mean((0, 2, 3)), reference.mean((0, 2, 3)), rtol=0, atol=0.02)
    assert abs(float(drawn.std() / reference.std()) - 1) < 0.1
