"""The seconds of a job that was stopped and gone on with add up."""

from __future__ import annotations

import csv
import json
import os
import time

import pytest

from invdiff.experiments import jobs as jobs_module
from invdiff.experiments.run import compose, main
from invdiff.experiments.spent import SPENT, Spent

WORDS = [
    *("operator=mask", "data.crop=16", "data.images=[chelsea,coffee]", "pictures=false", "prior=gaussian"),
    *("solver=ddrm", "solver.steps=3", "store=true", "device=cpu", "draws=4", "micro_batch=4"),
]


def begun(folder, before, began):
    (folder / SPENT).write_text(json.dumps({"draws.zarr": {"before": before, "began": began}}))


def test_the_seconds_of_a_job_that_was_stopped_add_up(tmp_path, monkeypatch, capsys):
    inner = jobs_module.sample

    def stopped(*words, draws, **settings):
        inner(*words, draws=2, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_module, "sample", stopped)
    assert main([*WORDS, f"out={tmp_path}"]) == 130
    monkeypatch.undo()
    (folder,) = tmp_path.glob("skimage*")
    record = json.loads((folder / SPENT).read_text())["draws.zarr"]
    assert record["before"] == 0
    # Its draws were written 90 seconds after it began, and 10 seconds were before that.
    begun(folder, 10.0, record["began"])
    for file in (folder / "draws.zarr" / "sample_stats" / "done").rglob("*"):
        os.utime(file, (record["began"] + 90, record["began"] + 90))
    assert main([*WORDS, f"out={tmp_path}"]) == 0
    done = json.loads((folder / "done.json").read_text())
    (run,) = json.loads((folder / "record.json").read_text())["runs"]
    assert done["seconds_before"] == run["seconds_before"] == pytest.approx(100, abs=0.01)
    assert done["seconds"] >= 100 + run["seconds"]
    with (folder / "figures.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == pytest.approx([(100 + run["seconds"]) / 2] * 2, abs=0.01)
    assert ", 100.0 s of them before it was stopped" in capsys.readouterr().out
    assert not (folder / SPENT).exists()


def test_a_job_in_one_go_took_nothing_before(tmp_path, capsys):
    assert main([*WORDS, f"out={tmp_path}"]) == 0
    (done,) = tmp_path.glob("*/done.json")
    record = json.loads(done.read_text())
    assert record["seconds_before"] == 0
    assert record["seconds"] < 60
    assert "before it was stopped" not in capsys.readouterr().out


def test_draws_without_a_note_were_begun_with_their_first_file(tmp_path):
    marks = tmp_path / "draws.zarr" / "sample_stats" / "done"
    marks.mkdir(parents=True)
    for seconds, file in ((1000, marks.parent.parent / "zarr.json"), (1040, marks / "zarr.json"), (1070, marks / "c0")):
        file.write_text("")
        os.utime(file, (seconds, seconds))
    assert Spent(tmp_path / "draws.zarr").begin() == 70


def test_draws_that_are_gone_took_nothing(tmp_path):
    begun(tmp_path, 10.0, time.time() - 50)
    assert Spent(tmp_path / "draws.zarr").begin() == 0
    # A run that left nothing took nothing for what is there.
    (tmp_path / "draws.zarr").mkdir()
    begun(tmp_path, 10.0, time.time() - 50)
    assert Spent(tmp_path / "draws.zarr").begin() == 10
    assert Spent(tmp_path / "draws_1.zarr").begin() == 0
    assert set(json.loads((tmp_path / SPENT).read_text())) == {"draws.zarr", "draws_1.zarr"}


@pytest.mark.parametrize("content", ["{", "{}", "[]", ""])
def test_a_record_that_cannot_be_read_is_named(tmp_path, capsys, content):
    (job,) = compose([*WORDS, f"out={tmp_path}"])
    job.folder.mkdir()
    (job.folder / "done.json").write_text(content)
    assert main([*WORDS, f"out={tmp_path}"]) == 2
    said = f"invdiff: {job.folder}/done.json is no record of a job: remove it, and the job runs again.\n"
    assert capsys.readouterr().err == said
