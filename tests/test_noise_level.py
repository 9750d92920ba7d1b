"""Noise levels that are 0 in the precision they are used in."""

from __future__ import annotations

import pytest
import torch

from invdiff.noise import GaussianNoise


@pytest.mark.parametrize("sigma", [1e-60, torch.tensor(1e-60, dtype=torch.float64)])
def test_a_sigma_that_is_0_in_the_precision_of_the_image_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma is 0, where the gradient does not exist"):
        GaussianNoise(sigma).score(torch.ones(1, 2), torch.zeros(1, 2))
