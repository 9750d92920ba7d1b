from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of test images, kernels and third-party weights."""
    folder = os.environ.get("INVDIFF_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("INVDIFF_DATA names no folder: the test needs images and weights from outside the repository")
    return Path(folder)


@pytest.fixture
def global_random_state_is_untouched():
    """Fails the test if anything in it reads or writes the global random state."""
    before = torch.get_rng_state().clone()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"
