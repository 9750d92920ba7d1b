"""The training loop: a run that was stopped, killed or shared by two processes is the run that was not."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import loop
from experiments.data import Crops
from experiments.loop import Diverged, run
from experiments.objective import Diffusion, draw_sigma
from experiments.optimizers import learning_rate, optimizers
from experiments.settings import SettingsError
from invdiff.priors import load_natural
from invdiff.priors.weights import load_state_dict

ROOT = Path(__file__).resolve().parents[2]


def weights(out: str | Path) -> dict[str, Tensor]:
    return load_state_dict(Path(out) / "prior.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def start(words: list[str], processes: int = 1) -> subprocess.Popen[bytes]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "experiments.train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def wait_for_a_step(checkpoint: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if checkpoint.exists():
            return
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.05)
    process.kill()
    pytest.fail("no checkpoint after a minute")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder, settings, monkeypatch, capsys, optimizer):
    change = f"optimizer={optimizer}"
    assert run(settings(f"out={folder / 'whole'}", change))
    calls = []
    batch = Crops.batch

    def interrupted(self, size, random):
        calls.append(size)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, size, random)

    monkeypatch.setattr(Crops, "batch", interrupted)
    assert not run(settings(change))
    assert "Stopped at step 4; the same command goes on from there." in capsys.readouterr().out
    assert run(settings(change))
    assert "This run goes on from step 4." in capsys.readouterr().out
    assert len(calls) == 6, "no step was done twice"
    assert same(weights(folder / "whole"), weights(folder / "out"))
    whole, cut = (list(csv.DictReader((folder / o / "log.csv").open())) for o in ("whole", "out"))
    for row in (*whole, *cut):
        del row["s_per_step"]
    assert whole == cut
    assert [row["step"] for row in cut] == ["2", "4", "6"]


def test_a_stop_between_checkpoints_loses_nothing(folder, settings, monkeypatch):
    run(settings(f"out={folder / 'whole'}", "checkpoint_every=4"))
    step = loop.Run.step
    monkeypatch.setattr(loop.Run, "step", lambda self, crops, stop: step(self, crops, self.done == 1))
    assert not run(settings("checkpoint_every=4"))
    monkeypatch.undo()
    run(settings("checkpoint_every=4"))
    assert same(weights(folder / "whole"), weights(folder / "out"))
    losses = [[row["loss"] for row in csv.DictReader((folder / o / "log.csv").open())] for o in ("whole", "out")]
    assert losses[0] == losses[1], "the interval's figures are those of all of its steps"


def test_a_killed_run_goes_on_bit_for_bit(folder, settings, command_line):
    # Long enough to be killed; without a decay in the steps that count, the run that is compared may be shorter.
    process = start(command_line("steps=1000000"))
    wait_for_a_step(folder / "out" / "last.pt", process)
    process.kill()
    process.wait()
    process.stdout.close()
    held = torch.load(folder / "out" / "last.pt", weights_only=True)["step"]
    assert held % 2 == 0
    run(settings(f"steps={held + 4}"))
    run(settings(f"steps={held + 4}", f"out={folder / 'whole'}"))
    assert same(weights(folder / "whole"), weights(folder / "out"))


def test_two_processes_take_the_steps_of_one(folder, settings, command_line):
    changes = ("batch=4", "steps=4", "warmup=1")
    process = start(command_line(f"out={folder / 'two'}", *changes), processes=2)
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, said
    run(settings(*changes))
    first = {key: value.detach() for key, value in loop.build(settings(*changes)).network.named_parameters()}
    one, two = (torch.load(folder / o / "last.pt", weights_only=True)["network"] for o in ("out", "two"))
    moved = sum(float((one[key] - first[key]).square().sum()) for key in first) ** 0.5
    apart = sum(float((one[key] - two[key]).square().sum()) for key in first) ** 0.5
    assert apart < 1e-3 * moved, "the gradients are averaged"
    assert load_natural(folder / "two" / "prior.safetensors").card["training"]["processes"] == 2
    losses = [[float(row["loss"]) for row in csv.DictReader((folder / o / "log.csv").open())] for o in ("out", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_two_processes_need_an_even_batch(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match=r"batch=3 cannot be shared by 2 processes: use a multiple of 2"):
        run(settings("batch=3"))


def test_a_run_can_be_prolonged_and_its_decay_moves(folder, settings):
    run(settings("steps=4", "decay=1"))
    run(settings("steps=6", "decay=2"))
    run(settings("steps=6", "decay=2", f"out={folder / 'whole'}"))
    assert same(weights(folder / "whole"), weights(folder / "out")), "the first four steps had no decay in either"
    assert load_natural(folder / "out" / "prior.safetensors").card["steps"] == 6


def test_a_finished_run_is_left_as_it_is_and_says_so(folder, settings, capsys):
    run(settings("validate_every=2"))
    assert "finished" not in capsys.readouterr().out
    before = (folder / "out" / "prior.safetensors").read_bytes()
    run(settings("validate_every=2"))
    assert (folder / "out" / "prior.safetensors").read_bytes() == before
    said = capsys.readouterr().out
    assert "This run was finished at step 6, and " in said
    assert "prior.safetensors holds its prior: raise steps= to go on" in said
    (folder / "out" / "prior.safetensors").unlink()
    run(settings("validate_every=2"))
    assert (folder / "out" / "prior.safetensors").exists()
    assert "finished" not in capsys.readouterr().out
    run(settings("validate_every=2", "steps=8"))
    assert "This run goes on from step 6." in capsys.readouterr().out


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_files_it_writes_are_as_open_as_any_other(folder, settings, mask, mode):
    before = os.umask(mask)
    try:
        run(settings("steps=2", "decay=1"))
    finally:
        os.umask(before)
    for name in ("prior.safetensors", "last.pt", "log.csv", "validation.csv"):
        assert (folder / "out" / name).stat().st_mode & 0o777 == mode


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint(folder, settings):
    sentence = r"The loss is (nan|inf) at step \d+: the last good checkpoint is .*last\.pt \(step \d+\); use a lower lr"
    with pytest.raises(Diverged, match=sentence):
        run(settings("lr=1e18", "clip=1e30", "warmup=1", "steps=400", "checkpoint_every=1"))
    held = torch.load(folder / "out" / "last.pt", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in held["network"].values())


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(settings, monkeypatch):
    monkeypatch.setattr(Diffusion, "losses", lambda self, x0, *_: x0[:, 0, 0, 0] * self.network.tail.bias.sum() / 0)
    with pytest.raises(Diverged, match=r"The loss is nan at step 0: there is no checkpoint yet; use a lower lr"):
        run(settings())


def test_a_gradient_that_is_not_finite_changes_nothing(folder, settings, monkeypatch):
    run(settings("steps=2", "decay=1"))
    held = torch.load(folder / "out" / "last.pt", weights_only=True)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, longest: torch.tensor(float("inf")))
    with pytest.raises(Diverged, match=r"The norm of the gradient is inf at step 2: .*\(step 2\)"):
        run(settings("steps=6", "decay=1"))
    again = torch.load(folder / "out" / "last.pt", weights_only=True)
    assert same(held["network"], again["network"])


def test_the_learning_rate_rises_stays_and_falls():
    cfg = {"lr": 1.0, "steps": 10, "warmup": 2, "decay": 4, "schedule": "linear"}
    assert [learning_rate(step, cfg) for step in range(11)] == pytest.approx([0.5, *[1] * 6, 0.75, 0.5, 0.25, 0])
    cosine = [learning_rate(step, cfg | {"schedule": "cosine"}) for step in range(11)]
    assert cosine[:3] == pytest.approx([0.5, 1, 1])
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[10] == pytest.approx(0)
    assert cosine[2:] == sorted(cosine[2:], reverse=True)


def test_noise_levels_stay_in_the_range_and_reach_its_ends():
    sigma = draw_sigma(50_000, 0.002, 50.0, torch.Generator().manual_seed(0))
    assert float(sigma.min()) >= 0.002
    assert float(sigma.max()) <= 50.0
    wide = torch.log(torch.tensor(5.0)) / torch.log(torch.tensor(25_000.0))
    assert float((sigma > 10).float().mean()) == pytest.approx(0.2 * float(wide), abs=0.005)
    assert 0.1 < float(sigma.median()) < 0.25


def test_muon_steps_the_inner_convolutions_only(settings):
    network = loop.build(settings()).network
    muon, adamw = optimizers(network, "muon", 1e-3, 0.0)
    names = {id(value): key for key, value in network.named_parameters()}
    inner = {names[id(value)] for group in muon.param_groups for value in group["params"]}
    rest = {names[id(value)] for group in adamw.param_groups for value in group["params"]}
    assert inner | rest == set(names.values())
    assert not inner & rest
    assert {"head.weight", "tail.weight"} <= rest
    assert all(network.get_parameter(key).ndim == 4 for key in inner)
    assert {"down.0.0.conv1.weight", "shrink.0.weight", "grow.0.weight"} <= inner
