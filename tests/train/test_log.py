"""What a run says: rows that fit its checkpoint, lines off a terminal, a bar on one, TensorBoard where it is given."""

from __future__ import annotations

import csv
import sys

import pytest

from experiments.log import Log, logging, write_rows


class Writer:
    def __init__(self) -> None:
        self.found: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.found.append((name, value, step))


def test_rows_are_written_whole_with_every_column(tmp_path):
    write_rows(tmp_path / "log.csv", [{"step": 1, "a": 2.0}, {"step": 2, "a": 3.0, "b": 4.0}])
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert rows == [{"step": "1", "a": "2.0", "b": ""}, {"step": "2", "a": "3.0", "b": "4.0"}]
    write_rows(tmp_path / "log.csv", [{"step": 1, "a": 2.0}])
    assert len(list(csv.DictReader((tmp_path / "log.csv").open()))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    write_rows(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


def test_off_a_terminal_an_interval_is_a_line(capsys):
    with logging(10, 0, 4, quiet=False, progress=True, writer=None) as log:
        log.step(1, 0.5)
        log.row({"step": 12345, "loss": 0.123456789012, "loss 0.01 to 0.03": 1 / 3, "lr": 1e-5}, "training")
        log.say("A sentence.")
    line, sentence = capsys.readouterr().out.splitlines()
    assert line == "training: step = 12345, loss = 0.1235, loss 0.01 to 0.03 = 0.3333, lr = 1e-05"
    assert sentence == "A sentence."


def test_the_other_processes_say_nothing(capsys):
    with logging(10, 0, 4, quiet=True, progress=True, writer=None) as log:
        log.step(1, 0.5)
        log.row({"step": 1, "loss": 0.5}, "training")
        log.say("A sentence.")
    assert capsys.readouterr() == ("", "")


def test_tensorboard_gets_the_figures():
    writer = Writer()
    Log(4, quiet=True, writer=writer).row({"step": 7, "loss": 0.5, "lr": 0.1}, "training")
    assert writer.found == [("training/loss", 0.5, 7), ("training/lr", 0.1, 7)]


def test_on_a_terminal_there_is_a_bar_with_the_loss_the_pace_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with logging(10, 2, 4, quiet=False, progress=True, writer=None) as log:
        log.step(3, 0.25)
        log.row({"step": 3, "loss": 0.25}, "training")
    said = capsys.readouterr()
    assert "loss 0.2500" in said.err
    assert "images/s" in said.err
    assert " 3/10" in said.err
    assert said.out == "", "the bar stands in place of the lines"


def test_the_pace_does_not_count_validation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("experiments.log.time.monotonic", lambda: now[0])
    paces: list[float] = []
    log = Log(8, bar=lambda done, loss, pace: paces.append(pace))
    now[0] = 2.0
    log.step(1, 0.0)
    now[0] = 100.0
    log.skip_time()
    now[0] = 102.0
    log.step(2, 0.0)
    assert paces == pytest.approx([4.0, 4.0])
