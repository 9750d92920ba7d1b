"""One page of an ensemble, complete in one file: see `write_report`."""

from __future__ import annotations

from .report import write_report

__all__ = ["write_report"]
