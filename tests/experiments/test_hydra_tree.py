"""What Hydra is told is checked before anything of it runs: launcher, sweeper, callbacks, logging, search path."""

from __future__ import annotations

import logging
import sys

import pytest
from omegaconf import OmegaConf

from invdiff.experiments.build import RefusedError
from invdiff.experiments.run import compose, main

QUICK = ["prior=tv", "solver=pnp_hqs"]


def refused(*words: str, match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        compose([*QUICK, *words])


@pytest.mark.parametrize(
    "words",
    [
        ["solver._target_=torch.load"],
        ["prior._target_=deepinv.torch.load"],
        ["prior._target_=invdiff.priors.weights.torch.load"],
        ["operator.kernel._target_=builtins.open"],
        ["operator.kernel._target_=pathlib.Path.write_text"],
        ["+extra.deep._target_=os.system"],
        ["+extra=[{_target_:os.system}]"],
        ["+name=torch.load", "solver._target_=${name}"],
        ["+a=torch", "solver._target_=${a}.load"],
        ["~solver", "+solver._target_=torch.load"],
        ["noise._target_=hydra.utils.get_method"],
        ["data._target_=hydra.utils.get_method"],
        ["+engine._target_=subprocess.Popen"],
    ],
)
def test_settings_of_the_command_line(words):
    refused(*words, match="not on the list")


@pytest.mark.parametrize("word", ["+solver._partial_=true", "+solver._args_=[1]"])
def test_ways_around_a_plain_call(word):
    refused(word, match="holds _")


def test_a_swept_name_is_checked_too(tmp_path):
    refused("-m", "solver._target_=invdiff.solvers.pnp_hqs.PnPHQS,torch.load", match=r"torch\.serialization:load")
    refused(*sweeping(tmp_path, {"solver._target_": "torch.load"}), match="not on the list")


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("hydra.launcher._target_=subprocess.Popen", r"at hydra\.launcher names subprocess\.Popen"),
        ("+hydra.launcher.more._target_=os.system", r"at hydra\.launcher\.more"),
        ("hydra.sweeper._target_=subprocess.Popen", r"at hydra\.sweeper"),
        (
            "hydra.sweeper._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher",
            "expected hydra/sweeper=basic",
        ),
        ("+hydra.callbacks.mine._target_=builtins.open", r"at hydra\.callbacks\.mine"),
        ("+hydra.callbacks.mine._target_=hydra.experimental.callbacks.LogJobReturnCallback", "LogJobReturnCallback"),
        ("+hydra.job_logging.handlers.x.class=subprocess.Popen", r"subprocess\.Popen"),
        ("+hydra.job_logging.handlers.x.class=logging.handlers.SocketHandler", "SocketHandler"),
        ("+hydra.hydra_logging.handlers.x.class=torch.logging.FileHandler", "not on the list"),
        ("+hydra.hydra_logging.handlers.x={class:logging.StreamHandler,stream:'ext://os.environ'}", "ext://os.environ"),
        ("+hydra.hydra_logging.handlers.x={class:logging.StreamHandler,stream:'cfg://a'}", "cfg://a"),
        (
            "+hydra.job_logging.handlers.x={class:logging.FileHandler,filename:/a.log}",
            "ends in .log, in this folder",
        ),
        ("+hydra.job_logging.handlers.x={class:logging.FileHandler,filename:../a.log}", "ends in .log, in this folder"),
        ("+hydra.job_logging.handlers.x={class:logging.FileHandler,filename:.bashrc}", "ends in .log, in this folder"),
        ("+hydra.job.env_set.LD_PRELOAD=x.so", r"--allow hydra\.job\.env_set"),
        ("+hydra.launcher.setup=[evil]", r"--allow hydra\.launcher\.setup"),
        ("+hydra.launcher.python=evil", r"--allow hydra\.launcher\.python"),
        ("hydra.launcher=null", r"hydra\.launcher is empty: leave it out"),
        ("hydra.job.chdir=true", r"hydra\.job\.chdir is true: leave it out"),
        ("hydra.searchpath=[pkg://intruder]", "--allow PACKAGE"),
        ("hydra.searchpath=['pkg://${prior}']", "--allow PACKAGE"),
        ("hydra.searchpath=['structured://intruder']", "--allow PACKAGE"),
        ("+hydra={searchpath:[pkg://intruder]}", "--allow PACKAGE"),
    ],
)
def test_the_tree_of_hydra(word, match):
    refused(word, match=match)
    refused("-m", word, match=match)


def test_what_is_swept_of_hydra_is_checked(tmp_path):
    handler = "+hydra.job_logging.handlers.x.class"
    words = sweeping(tmp_path, {handler: "logging.NullHandler,subprocess.Popen"})
    refused(*words, match=r"subprocess\.Popen")
    assert len(compose(sweeping(tmp_path, {handler: "logging.NullHandler"}))) == 1


def sweeping(folder, params):
    """The words that take these params of Hydra's sweeper from a file."""
    content = {"defaults": ["run", "_self_"], "hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}
    OmegaConf.save(content, folder / "mine.yaml")
    return [*QUICK, "--config-dir", str(folder), "--config-name", "mine"]


@pytest.mark.parametrize(
    "part",
    [
        "handlers: {x: {(): os.system}}",
        "formatters: {x: {(): os.system}}",
        "filters: {x: {deep: [{(): os.system}]}}",
        "handlers: {x: {class: logging.StreamHandler, .: {level: os.system}}}",
    ],
)
def test_a_factory_of_logging_in_a_file(part, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"defaults: [run, _self_]\nhydra: {{job_logging: {{{part}}}}}\n")
    refused("--config-dir", str(tmp_path), "--config-name", "mine", match=r"os\.system|sets attributes")


# Two things for one place: harmless without a job, and another once Hydra runs one and knows its number.
LATER = "${oc.create:${oc.decode:${oc.select:pick.${oc.select:hydra.job.id,zz},'{_target_: os.mkdir, path: ran}'}}}"


@pytest.mark.parametrize(
    "hydra",
    [
        {"callbacks": {"x": LATER}},
        {"callbacks": "${other}"},
        {"callbacks": {"x": "${other.x}"}},
        {"callbacks": {"x": "${relay.x}"}},
        {"callbacks": {"x": "${ring}"}},
        {"job": {"env_set": "${other}"}},
        {"job_logging": {"handlers": {"x": {"class": "${names.${hydra.job.num}}"}}}},
        {"job_logging": {"handlers": {"x": {"class": "${plain}"}}}},
        {"job_logging": {"formatters": {"x": {"()": "${plain}"}}}},
        {"hydra_logging": {"filters": ["${names.${hydra.job.num}}"]}},
    ],
)
def test_what_could_be_another_thing_later(hydra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rest = {"pick": {"0": "{}"}, "other": {"x": LATER}, "relay": "${other}", "names": ["logging.StreamHandler", "os.x"]}
    rest |= {"plain": "logging.StreamHandler", "ring": "${ring}"}
    OmegaConf.save({"defaults": ["run", "_self_"], **rest, "hydra": hydra}, tmp_path / "mine.yaml")
    words = [*QUICK, "-m", "--config-dir", ".", "--config-name", "mine", f"out={tmp_path}/out"]
    refused(*words, match="may be another thing|expected a name, written out")
    assert main(words) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_text_that_is_filled_in_later_is_taken(tmp_path):
    logged = {"handlers": {"x": {"class": "logging.FileHandler", "filename": "${hydra.job.num}_${now:%Y}.log"}}}
    OmegaConf.save({"defaults": ["run", "_self_"], "hydra": {"job_logging": logged}}, tmp_path / "mine.yaml")
    assert len(compose([*QUICK, "--config-dir", str(tmp_path), "--config-name", "mine"])) == 1


def test_a_search_path_behind_an_interpolation(tmp_path):
    (tmp_path / "mine.yaml").write_text("x: {searchpath: [pkg://intruder]}\nhydra: ${x}\n")
    refused("--config-dir", str(tmp_path), "--config-name", "mine", match="--allow PACKAGE")


def test_a_package_on_the_search_path_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "intruder").mkdir()
    (tmp_path / "intruder" / "__init__.py").write_text("open('ran', 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("defaults: [run, _self_]\nhydra: {searchpath: ['pkg://intruder']}\n")
    refused("hydra.searchpath=[pkg://intruder]", match="pkg://intruder")
    refused("--config-dir", str(tmp_path), "--config-name", "mine", match="pkg://intruder")
    for key in ("hydra.searchpath", "+hydra.searchpath"):
        refused(*sweeping(tmp_path, {"prior": "tv", key: "[pkg://intruder]"}), match="pkg://intruder")
    assert "intruder" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_what_is_allowed_of_hydra(tmp_path):
    jobs = compose(
        [
            *QUICK,
            "-m",
            "hydra/job_logging=default",
            "+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback",
            "+hydra.job.env_set.OMP_NUM_THREADS='1'",
            f"hydra.searchpath=[file://{tmp_path},pkg://invdiff.experiments.conf]",
        ],
        allow=["hydra.experimental.callbacks:LogJobReturnCallback", "hydra.job.env_set"],
    )
    assert len(jobs) == 1


def test_nothing_runs_when_a_setting_is_refused(tmp_path, capsys):
    before = list(logging.getLogger().handlers)
    word = "+hydra.job_logging={version:1,handlers:{x:{class:logging.FileHandler,filename:/a.log}}}"
    assert main([*QUICK, f"out={tmp_path}/out", word]) == 2
    assert main([*QUICK, f"out={tmp_path}/out", "solver._target_=torch.load"]) == 2
    said = capsys.readouterr().err
    assert "invdiff: The configuration at solver names torch.load, which is torch.serialization:load:" in said
    assert not list(tmp_path.iterdir())
    assert logging.getLogger().handlers == before


def test_a_pickle_of_an_earlier_run_is_not_taken(capsys):
    # Hydra's own flag, which unpickles a file.
    with pytest.raises(SystemExit):
        main(["--experimental-rerun", "config.pickle"])
    assert "unrecognized arguments" in capsys.readouterr().err
