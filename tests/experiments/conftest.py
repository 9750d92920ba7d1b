"""What the tests of experiments share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from invdiff.experiments import memory


@pytest.fixture(autouse=True)
def uncollected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job collects what earlier ones left, so that its peak is its own; in a whole session of tests that takes long.

    The tests of that peak do collect.
    """
    if request.path.stem != "test_memory":
        monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
