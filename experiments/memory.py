"""The most memory that a computation held at a time."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

__all__ = ["Peak"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Counts from here on: of a CUDA device what torch allocated, of the CPU the whole process, in MiB.

    Only Linux lets a process forget the peak of an earlier job; elsewhere there is no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        if not _RESET.exists():
            self.known = False
            return
        # What an earlier job of this process has freed is given back, so that it does not count as this one's.
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            _RESET.write_text("5")
        except OSError:
            self.known = False

    def mib(self) -> float | None:
        """The peak since then."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if not self.known:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return None if found is None else int(found[1]) / 1024
