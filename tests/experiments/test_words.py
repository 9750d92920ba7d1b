"""Settings of one choice alone, and sentences for words that lead nowhere."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from invdiff.experiments.run import compose, main
from invdiff.experiments.words import scoped

TASK = ["operator=mask", "prior=tv"]


def steps(*words: str) -> list[tuple[str, int]]:
    jobs = compose([*TASK, *words])
    return [(job.names["solver"], job.settings["solver"].get("steps", 0)) for job in jobs]


def test_a_setting_of_one_solver_of_a_sweep():
    words = ["-m", "solver=kps,ddrm,pnp_hqs", "solvers.kps.steps=30", "solvers.ddrm.steps=20"]
    assert steps(*words) == [("kps", 30), ("ddrm", 20), ("pnp_hqs", 0)]
    # It is of less than a setting of all of them, wherever it stands.
    assert steps("-m", "solvers.kps.steps=30", "solver=kps,ddrm", "solver.steps=7") == [("kps", 30), ("ddrm", 7)]


def test_it_is_the_same_job_as_alone():
    (_, swept) = compose([*TASK, "-m", "solver=pnp_hqs,ddrm", "solvers.ddrm.steps=20"])
    (alone,) = compose([*TASK, "solver=ddrm", "solver.steps=20"])
    assert swept.key == alone.key
    assert swept.title == "skimage_mask_tv_ddrm"
    (named,) = compose([*TASK, "solver=ddrm", "solvers.ddrm.steps=20"])
    assert named.settings == alone.settings


def test_a_setting_of_one_choice_is_swept_for_it_alone():
    jobs = compose([*TASK, "-m", "solver=pnp_hqs,ddrm", "solvers.ddrm.steps=3,4", "solvers.pnp_hqs.lam=0.1"])
    assert [job.title for job in jobs] == [
        "skimage_mask_tv_pnp_hqs",
        "skimage_mask_tv_ddrm solver.steps=3",
        "skimage_mask_tv_ddrm solver.steps=4",
    ]
    assert jobs[0].settings["solver"]["lam"] == 0.1


def test_the_other_groups_have_it_too():
    words = ["-m", "operator=blur,mask", "operators.blur.kernel.sigma=1", "operators.mask.mask.seed=5"]
    blur, mask = compose(["prior=tv", "solver=pnp_hqs", *words, "priors.tv.iterations=9"])
    assert blur.settings["operator"]["kernel"]["sigma"] == 1
    assert mask.settings["operator"]["mask"]["seed"] == 5
    assert blur.settings["prior"]["iterations"] == 9
    gaussian, poisson = compose([*TASK, "solver=dps", "-m", "noise=gaussian,poisson", "noises.poisson.gain=0.5"])
    assert (gaussian.settings["noise"].get("gain"), poisson.settings["noise"]["gain"]) == (None, 0.5)


def test_in_a_file_of_a_sweep(tmp_path):
    params = {"solver": "pnp_hqs,ddrm", "solvers.ddrm.steps": 20, "solvers.pnp_hqs.iterations": "5,6"}
    content = {"defaults": ["run", "_self_"], "hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}
    OmegaConf.save(content, tmp_path / "mine.yaml")
    jobs = compose(["--config-dir", str(tmp_path), "--config-name", "mine", "prior=tv"])
    found = [job.settings["solver"] for job in jobs]
    assert [(tree.get("steps"), tree.get("iterations")) for tree in found] == [(None, 5), (None, 6), (20, None)]


def test_a_setting_of_the_swept_solvers_may_be_none_of_the_usual_one():
    jobs = compose(["-m", "solver=pnp_hqs,red_fp", "prior=tv", "solver.iterations=3"])
    assert [job.settings["solver"]["iterations"] for job in jobs] == [3, 3]


def test_words_that_are_of_no_choice():
    assert scoped("+solvers.kps.more=1").plain == "+solver.more=1"
    assert scoped("~priors.tv.scale").plain == "~prior.scale"
    for word in ("solver.steps=3", "solvers.kps=3", "solvers/kps.steps=3", "weights.dncnn=a.b.c"):
        assert scoped(word) is None


SOLVERS = "choose from daps, ddim, ddnm, "


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prior=tvv"], "There is no prior=tvv (did you mean tv?): choose from adm, bilateral, bm3d, "),
        (["-m", "prior=gaussian,tvv"], "There is no prior=tvv (did you mean tv?): choose from adm, bilateral, "),
        (["solver=ddrn"], f"There is no solver=ddrn (did you mean ddrm or ddnm?): {SOLVERS}"),
        (["solver=nothing"], f"There is no solver=nothing: {SOLVERS}"),
        (["operator=blurr"], "There is no operator=blurr (did you mean blur?): choose from blur, downsample, "),
        (["data=cbsd"], "There is no data=cbsd (did you mean cbsd68?): choose from cbsd68, folder, kodak24, "),
        (
            ["operator/kernel=gauss"],
            "There is no operator/kernel=gauss: choose from disk_psf, gaussian_psf, load_psf, ",
        ),
        (["solvr=ddrm"], "There is no setting solvr: did you mean solver"),
        (["fnord=3"], "There is no setting fnord: --cfg prints all there are.\n"),
        (["operator/mask=box_mask"], "There is no setting operator/mask: did you mean operator"),
        (["solver.stps=3"], "There is no setting solver.stps with solver=kps: did you mean solver.steps?\n"),
        (["-m", "solver=kps,ddrm", "solver.stps=3"], "There is no setting solver.stps with solver=kps: did you mean "),
        (
            ["-m", "solver=kps,pnp_hqs", "solver.steps=3"],
            "There is no setting solver.steps with solver=pnp_hqs: choose from solver.iterations, solver.sigma_start, "
            "solver.sigma_end, solver.lam; solvers.NAME.steps=VALUE is for solver=NAME alone.\n",
        ),
        (["solvers.kps.stps=3"], "There is no setting solver.stps with solver=kps: did you mean solver.steps?\n"),
        (["solvers.ddrm.steps=3"], "solvers.ddrm.steps=3 is for solver=ddrm, which no job has: choose from kps.\n"),
        (
            ["-m", "solver=kps,ddrm", "solvers.kpz.steps=3,4"],
            "solvers.kpz.steps=3 is for solver=kpz, which no job has: did you mean kps?\n",
        ),
        (["+solver.steps=3"], "There is a setting solver.steps already: leave out the plus.\n"),
        (["-m", "prior=tv", "solvr=ddrm"], "There is no setting solvr: did you mean solver"),
        (["-m", "solver=glob(zz*)"], "The sweep solver=glob(zz*) has no job: expected a glob(...) that fits a choice"),
        (["~draws"], "The configuration has no draws: leave out ~draws, and begin a file of your own with defaults: ["),
        (["-m", "~data"], "The configuration has no data: leave out ~data, and begin a file of your own with "),
        (
            ["-m", "hydra.sweeper.params={solver: 'ddrm,dps'}"],
            "hydra.sweeper.params is given settings of a sweep as a mapping: sweep by -m with NAME=A,B, or write them ",
        ),
        (["-m", "hydra.sweeper={params: {solver: 'ddrm,dps'}}"], "hydra.sweeper is given settings of a sweep as a "),
        (["-m", "hydra={sweeper: {params: {solver: 'ddrm,dps'}}}"], "hydra is given settings of a sweep as a mapping"),
        (["prior=null"], "A group is given no name of a file: expected GROUP=CHOICE, such as prior=tv.\n"),
        (
            ["solver.steps=${fnord}"],
            "The configuration at hydra.overrides.task[0] cannot be resolved (Interpolation key 'fnord' not found): "
            "mend it, or leave out what refers to it.\n",
        ),
        (["solver=kps,ddrm"], "solver=kps,ddrm has several values: -m runs a job of each, and [A,B] is a list.\n"),
        (
            ["solver.steps=a=b"],
            "The setting 'solver.steps=a=b' cannot be read (",
        ),
    ],
)
def test_words_that_lead_nowhere(words, said, capsys):
    assert main([*words, "--cfg"]) == 2
    written = capsys.readouterr()
    assert written.err.startswith(f"invdiff: {said}")
    assert written.err.count("\n") == 1
    assert not written.out


def test_settings_of_one_choice_alone_in_a_file(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("defaults: [run, _self_]\nsolvers: {kps: {steps: 30}}\n")
    assert main(["--config-dir", str(tmp_path), "--config-name", "mine", "--cfg"]) == 2
    assert capsys.readouterr().err == (
        "invdiff: The configuration has solvers, which nothing reads: settings of one solver alone are given on the "
        "command line, as solvers.NAME.SETTING=VALUE.\n"
    )


def test_jobs_that_differ_in_where_they_run_alone(capsys, tmp_path):
    assert main([*TASK, "solver=pnp_hqs", "-m", f"out={tmp_path}/a,{tmp_path}/b"]) == 2
    said = capsys.readouterr().err
    assert "differ in out alone, which makes no other job: give out one value in a sweep." in said
    assert not list(tmp_path.iterdir())


def test_the_settings_of_every_job_are_printed(capsys):
    words = [*TASK, "solver=pnp_hqs,ddrm", "solvers.ddrm.steps=20"]
    assert main([*words, "-m", "--cfg"]) == 0
    parts = capsys.readouterr().out.split("---\n")
    heads = [part.splitlines()[0] for part in parts[1:]]
    assert heads == [
        "# job 1 of 2: operator=mask prior=tv solver=pnp_hqs",
        "# job 2 of 2: operator=mask prior=tv solver=ddrm solver.steps=20",
    ]
    first, second = (OmegaConf.create(part) for part in parts[1:])
    assert (first.solver._target_, second.solver.steps) == ("invdiff.solvers.pnp_hqs.PnPHQS", 20)
    assert "hydra" not in first
    # One job is its settings and nothing else.
    assert main([*TASK, "--cfg"]) == 0
    assert capsys.readouterr().out.startswith("data:\n")
