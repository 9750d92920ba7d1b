"""A sweep that is killed goes on where it was, in the middle of a job and between two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from invdiff.experiments.run import main

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    *("-m", "operator=mask", "data.crop=16", "data.images=[chelsea]", "draws=2", "pictures=false"),
    *("solver=ddrm", "solver.steps=3", "prior=gaussian,median,tv", "device=cpu"),
]
# The second job waits for a word that never comes, so that the kill falls into it.
WAITING = """
import sys, time
from invdiff.experiments import jobs, run
inner, done = jobs.sample, []
def sample(*words, **settings):
    if len(done) == {jobs}:
        print("in the middle", flush=True)
        time.sleep(600)
    done.append(1)
    return inner(*words, **settings)
jobs.sample = sample
sys.exit(run.main(sys.argv[1:]))
"""


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_sweep_runs_what_is_missing(tmp_path, capsys):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(jobs=1), *WORDS, f"out={out}"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "in the middle" in line:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    (done,) = out.glob("*/done.json")
    assert "_gaussian_" in str(done)
    assert len([path for path in out.iterdir() if path.is_dir()]) == 2
    before = done.stat().st_mtime_ns
    # It was not touched while the others ran.
    time.sleep(0.02)
    # In another process: this one.
    assert main([*WORDS, f"out={out}"]) == 0
    said = capsys.readouterr()
    assert "1 of 3 jobs are done already" in said.out
    assert "[1/2] skimage_mask_median_ddrm" in said.out
    assert "[2/2] skimage_mask_tv_ddrm" in said.out
    assert done.stat().st_mtime_ns == before
    records = [json.loads(path.read_text()) for path in out.glob("*/done.json")]
    assert {record["names"]["prior"] for record in records} == {"gaussian", "median", "tv"}
    assert not said.err
