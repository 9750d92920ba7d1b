"""The demo when it is stopped; that it ends well is for `make demo` to show."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from invdiff.experiments import demo


def test_ctrl_c_ends_the_demo_and_says_what_is_kept(tmp_path, monkeypatch):
    asked = []

    def interrupted(image, operator, **settings):
        asked.append(settings.get("store"))
        return SimpleNamespace(posterior=SimpleNamespace(record={"interrupted": "store" in settings}))

    monkeypatch.setattr(demo, "restore", interrupted)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"Interrupted: the draws that are finished are kept in .*ensembles, and the"):
        demo.main()
    # Of the first of the four tasks: two point estimates, and the draws.
    assert asked == [None, None, tmp_path / "out" / "ensembles" / "blur.zarr"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ensembles"]
