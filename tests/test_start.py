"""What `sample` takes for a start, and the sentence for everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.solvers import DDIM, DPS, CapabilityError, PnPHQS

IMAGE = torch.full((3, 6, 5), 0.4)


def colour(**changes: Any) -> FunctionPrior:
    """A prior of colour images of any size."""
    settings: dict[str, Any] = {"name": "colour", "channels": 3, "sigma_range": (0.0, 20.0)}
    return FunctionPrior(lambda x, sigma: 0.5 + (x - 0.5) / (1 + 16 * sigma**2), **settings | changes)


def drawn(start: Tensor, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"start_sigma": 0.1, "prior": colour()} | changes
    return sample(DDIM(steps=3), None, settings.pop("prior"), start=start, **settings).draws


@pytest.mark.parametrize(
    ("start", "cure"),
    [
        ((255 * IMAGE).to(torch.uint8), r"torch\.uint8: .*give start\.float\(\) / 255\."),
        ((65535 * IMAGE).to(torch.uint16), r"torch\.uint16: .*give start\.float\(\) / 65535\."),
        ((255 * IMAGE).long(), r"torch\.int64: .*give start\.float\(\) / 255\."),
        (IMAGE > 0, r"torch\.bool: .*give start\.float\(\)\."),
    ],
)
def test_integers_are_no_image(start: Tensor, cure: str) -> None:
    with pytest.raises(TypeError, match=f"start is {cure}"):
        drawn(start)


@pytest.mark.parametrize(("start", "found"), [(255 * IMAGE, "102 to 102"), (IMAGE - 2, r"-1\.6 to -1\.6")])
def test_values_far_outside_0_to_1_are_refused_where_the_prior_is_of_images(start: Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=f"start holds values from {found}: expected an image in about .0, 1.; divide"):
        drawn(start)
    measured = Likelihood(IMAGE, Identity((3, 6, 5)), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="start holds values from"):
        sample(PnPHQS(iterations=1), measured, colour(), start=start)


def test_values_a_little_outside_pass_and_a_prior_of_its_own_shape_says_its_own_units() -> None:
    wide = torch.linspace(-0.9, 1.9, 90).reshape(3, 6, 5)
    assert drawn(wide).shape == (1, 3, 6, 5)
    far = GaussianPrior(torch.full((1, 2, 2), 100.0), torch.eye(4))
    assert float(drawn(torch.full((1, 2, 2), 99.0), prior=far, start_sigma=1.0).min()) > 90


def test_channels_last_are_recognised() -> None:
    last = IMAGE.movedim(0, -1)
    for start in (last, last[None]):
        with pytest.raises(ValueError, match=r"start has the shape \(6, 5, 3\), with the channels last: .*movedim"):
            drawn(start)
        torch.testing.assert_close(drawn(start.movedim(-1, -3)), drawn(IMAGE))
    with pytest.raises(ValueError, match=r"in_shape is \(6, 5, 3\), with the channels last: .*give \(3, 6, 5\)\."):
        sample(DDIM(steps=3), None, colour(), in_shape=(6, 5, 3))
    measured = Likelihood(IMAGE, Identity((3, 6, 5)), GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"start has shape \(6, 5, 3\): .*channels lie last, so give start\.movedim"):
        sample(DPS(steps=3), measured, colour(), start=last, start_sigma=0.1)


def test_a_gray_image_without_its_axis_of_channels() -> None:
    with pytest.raises(ValueError, match=r"start has shape \(6, 5\): expected one image \(C, H, W\)"):
        drawn(IMAGE[0])


def test_a_level_above_the_priors_range_is_blamed_on_start_sigma() -> None:
    with pytest.raises(CapabilityError, match="start_sigma is 100: colour serves noise levels up to 20; start there"):
        drawn(IMAGE, start_sigma=100)
    assert torch.isfinite(drawn(IMAGE, start_sigma=20)).all()
