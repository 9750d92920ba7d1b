"""Jobs in processes of their own, as on a cluster: submitit's local executor takes SLURM's place."""

from __future__ import annotations

import json

import pytest

from invdiff.experiments.build import RefusedError
from invdiff.experiments.run import compose, main

pytest.importorskip(
    "hydra_plugins.hydra_submitit_launcher",
    reason="hydra-submitit-launcher is not installed: pip install 'invdiff[slurm]'",
)
WORDS = [
    *("-m", "operator=mask", "data.crop=16", "data.images=[chelsea]", "draws=2", "pictures=false", "solver=ddrm"),
    *("solver.steps=3", "device=cpu", "hydra/launcher=submitit_local"),
]


def test_jobs_of_a_launcher(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [*WORDS, "prior=gaussian,dncnn", "weights.dncnn=none.pth", f"out={tmp_path}/out"]
    assert main(words) == 1
    (done,) = tmp_path.glob("out/*/done.json")
    (failed,) = tmp_path.glob("out/*/failed.json")
    assert json.loads(done.read_text())["names"]["prior"] == "gaussian"
    assert "none.pth does not exist" in json.loads(failed.read_text())["sentence"]
    said = capsys.readouterr().out
    assert "skimage_mask_dncnn_ddrm: failed: The file of weights none.pth does not exist" in said
    before = done.stat().st_mtime_ns
    assert main([*WORDS, "prior=gaussian", f"out={tmp_path}/out"]) == 0
    assert "1 of 1 jobs are done already" in capsys.readouterr().out
    assert done.stat().st_mtime_ns == before


def test_slurm_is_on_the_list_and_its_shell_is_not():
    words = [*WORDS[:-1], "prior=gaussian", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    assert len(compose(words)) == 1
    with pytest.raises(RefusedError, match=r"hydra\.launcher\.partition has several lines"):
        compose([*words, "hydra.launcher.partition='gpu\nrm x'"])
    shell = "hydra.launcher.setup=['module load cuda']"
    with pytest.raises(RefusedError, match=r"hydra\.launcher\.setup is set, which a shell or a process would run"):
        compose([*words, shell])
    assert len(compose([*words, shell], allow=["hydra.launcher.setup"])) == 1
