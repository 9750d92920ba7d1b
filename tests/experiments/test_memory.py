"""The peak of a job is its own, not that of an earlier one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from invdiff.experiments import memory
from invdiff.experiments.memory import Peak

CPU = torch.device("cpu")


def measure(size):
    peak = Peak(CPU)
    held = torch.ones(size * 2**18)  # MiB
    found = peak.mib()
    del held
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process forget its peak")
def test_a_small_job_after_a_large_one():
    small, large, again = measure(4), measure(400), measure(4)
    assert large - small == pytest.approx(396, abs=40)
    assert again - small == pytest.approx(0, abs=40)


def test_without_a_way_to_tell_there_is_no_figure(monkeypatch):
    monkeypatch.setattr(memory, "_RESET", Path("nowhere/at/all"))
    assert Peak(CPU).mib() is None
