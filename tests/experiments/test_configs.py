"""The settings mirror the code, name by name and default by default, and every one of them builds."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from invdiff import operators, priors, solvers
from invdiff.experiments import allowed, sources
from invdiff.experiments.build import build, find, identity
from invdiff.experiments.jobs import FREE
from invdiff.experiments.run import CONF, compose

CONFIGS = {
    str(path.relative_to(CONF).with_suffix("")): OmegaConf.to_container(OmegaConf.load(path))
    for group in ("data", "engine", "noise", "operator", "prior", "solver")
    for path in sorted((CONF / group).rglob("*.yaml"))
}
TARGETS = {name: config for name, config in CONFIGS.items() if "_target_" in config}
# Given as tensors or as code, which no text can be: these have no settings of their own.
BY_CODE = {
    "priors": {"Denoiser", "FunctionPrior", "GaussianMixturePrior", "GaussianPrior", "Prior", "Tiled"},
    "operators": {"LinearOperator", "Operator", "Spectral", "CGResult"},
}


def chosen(group: str) -> set[str]:
    return {name.removeprefix(f"{group}/") for name in CONFIGS if name.startswith(f"{group}/")}


def test_every_solver_has_settings_of_its_name():
    assert chosen("solver") == set(solvers.names())


def test_every_prior_has_settings_of_its_name():
    assert chosen("prior") == {name.partition(":")[0] for name in priors.names()}


def test_every_public_class_has_settings():
    named = {config["_target_"] for config in TARGETS.values()}
    for package, module in (("operators", operators), ("priors", priors)):
        classes = {name for name in module.__all__ if isinstance(getattr(module, name), type)} - BY_CODE[package]
        for name in classes:
            own = getattr(module, name)
            path = f"{own.__module__}.{own.__qualname__}"
            # DiffusionPrior is what load_natural returns.
            if name != "DiffusionPrior":
                assert {path, f"{path}.from_file"} & named, name
    makers = {name for name in operators.__all__ if name.endswith(("_mask", "_psf"))}
    assert makers == {name.split("/")[2] for name in CONFIGS if name.count("/") == 2}


def test_the_list_holds_what_the_settings_name_and_no_more():
    named = {identity(find(config["_target_"])) for config in TARGETS.values()}
    named |= {"invdiff.experiments.sources:load_matrix"}
    assert named == allowed.ALLOWED


@pytest.mark.parametrize("name", TARGETS)
def test_keys_and_defaults_are_those_of_the_code(name):
    config = {key: value for key, value in TARGETS[name].items() if key != "defaults"}
    target = find(config.pop("_target_"))
    parameters = inspect.signature(target).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    # What another group fills in is in the defaults list.
    filled = {key for entry in TARGETS[name].get("defaults", []) if isinstance(entry, dict) for key in entry}
    assert [*config] == [p.name for p in named if p.name not in filled]
    for parameter in named:
        if parameter.name in filled or parameter.name == "in_shape":
            continue
        if parameter.default is parameter.empty:
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        assert config[parameter.name] == default, parameter.name
        assert type(config[parameter.name]) is type(default), parameter.name


def test_the_module_of_a_solver_has_the_name_of_its_file():
    modules = {name: config["_target_"].rpartition(".")[0] for name, config in TARGETS.items()}
    for choice in chosen("solver"):
        assert modules[f"solver/{choice}"] == f"invdiff.solvers.{choice}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the settings that need a file are given."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    state = {}
    for number, (into, out) in enumerate([(3, 4), *[(4, 4)] * 18, (4, 3)]):
        state[f"model.{2 * number}.weight"] = torch.randn(out, into, 3, 3) * 0.01
        state[f"model.{2 * number}.bias"] = torch.zeros(out)
    torch.save(state, folder / "dncnn.pth")
    np.save(folder / "psf.npy", np.ones((3, 3)))
    np.save(folder / "matrix.npy", np.eye(4))
    (folder / "images").mkdir()
    from PIL import Image

    Image.fromarray(np.full((24, 24, 3), 90, np.uint8)).save(folder / "images" / "plain.png")
    return folder


GIVEN = {
    "data/folder": {"path": "images"},
    "operator/matrix": {"matrix": {"_target_": "invdiff.experiments.sources.load_matrix", "path": "matrix.npy"}},
    "operator/kernel/load_psf": {"path": "psf.npy"},
    "prior/dncnn": {"path": "dncnn.pth"},
    "prior/deepinv": {"name": "TVDenoiser"},
}
# Networks of 100 MB and more: their loaders have tests of their own, with small files.
LARGE = {"prior/adm", "prior/diffusers", "prior/drunet", "prior/ffdnet"}


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in LARGE])
def test_every_configuration_builds(name, files, monkeypatch):
    monkeypatch.chdir(files)
    if name == "prior/bm3d":
        pytest.importorskip("bm3d", reason="the optional package bm3d is not installed")
    if name == "engine/dask":
        pytest.importorskip("distributed", reason="the optional package distributed is not installed")
    group, *_, choice = name.split("/")
    node = {key: value for key, value in TARGETS[name].items() if key != "defaults"} | GIVEN.get(name, {})
    if name == "operator/blur":
        node["kernel"] = TARGETS["operator/kernel/gaussian_psf"]
    if name == "operator/mask":
        node["mask"] = TARGETS["operator/mask/random_mask"] | {"in_shape": "${in_shape}"}
    shape = [4] if choice == "matrix" else [3, 24, 24]
    tree = OmegaConf.to_container(OmegaConf.create({"in_shape": shape, "it": node}), resolve=True)
    made = build(tree["it"])
    if group == "solver":
        assert made == solvers.load(choice)
    elif group == "prior":
        x = torch.full((1, made.channels or 3, 16, 16), 0.5)
        assert made(x, torch.tensor(0.1)).shape == x.shape
    elif name.count("/") == 2:
        assert torch.isfinite(made).all()
    elif group == "operator":
        assert made.in_shape == tuple(shape)
    elif group == "data":
        assert callable(made.load)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes_into_jobs(name):
    jobs = compose([f"experiment={name}"])
    if name == "spectrum":
        assert len({job.key for job in jobs}) == len(jobs) == 28
        return
    (job,) = jobs
    assert "_".join(job.names[group] for group in ("data", "operator", "prior", "solver")) == name
    stated = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{name}.yaml"))
    (plain,) = compose([f"{group}={job.names[group]}" for group in ("data", "operator", "prior", "solver")])
    for key, value in stated.items():
        if key == "defaults":
            continue
        assert plain.settings[key] != job.settings[key], "an experiment states differences only"
        for inner, said in value.items() if isinstance(value, dict) else ():
            assert plain.settings[key][inner] != said == job.settings[key][inner]


def test_overrides_of_the_groups_inside_an_operator():
    (job,) = compose(["operator=mask", "operator/mask=box_mask", "operator.mask.box=[1,2,3,4]", "prior=tv"])
    assert job.settings["operator"]["mask"]["_target_"].endswith("box_mask")
    (job,) = compose(["operator=blur", "operator/kernel=motion_psf", "operator.kernel.length=5", "prior=tv"])
    assert job.settings["operator"]["kernel"] == {
        "_target_": "invdiff.operators.psf.motion_psf",
        "length": 5,
        "angle": 0.0,
    }


def test_the_key_is_of_what_can_change_a_figure():
    (plain,) = compose(["prior=tv"])
    free = ["out=elsewhere", "pictures=false", "store=true", "device=cpu", "weights.dncnn=x"]
    (other,) = compose(["prior=tv", *free])
    assert other.key == plain.key
    changed = {name for name, value in plain.settings.items() if other.settings[name] != value}
    assert changed == {word.split("=")[0].split(".")[0] for word in free}
    assert changed <= set(FREE)
    keys = {plain.key}
    for words in (["draws=3"], ["seed=1"], ["prior.scale=2"], ["data.crop=64"], ["noise.sigma=0.1"], ["solver=dps"]):
        (other,) = compose(["prior=tv", *words])
        keys.add(other.key)
        assert other.folder != plain.folder
    assert len(keys) == 7


def test_settings_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"prior\.path is missing: give prior\.path=VALUE, or for a sweep weights"):
        compose(["-m", "prior=tv,dncnn"])
    assert [job.settings["prior"].get("path") for job in compose(["-m", "prior=tv,dncnn", "weights.dncnn=a.pth"])] == [
        None,
        "a.pth",
    ]
    (job,) = compose(["prior=dncnn", "prior.path=b.pth"])
    assert job.settings["prior"]["path"] == "b.pth"
    with pytest.raises(ValueError, match=r"data\.path is missing: give data\.path=VALUE\."):
        compose(["data=folder"])


def test_your_own_folder_of_settings(tmp_path):
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver" / "quick.yaml").write_text("_target_: invdiff.solvers.KPS\nsteps: 3\n")
    (tmp_path / "lab.yaml").write_text(
        "defaults: [run, {override solver: quick}, _self_]\n"
        "hydra: {searchpath: ['pkg://invdiff.experiments.conf']}\ndraws: 7\n"
    )
    (job,) = compose(["--config-dir", str(tmp_path), "solver=quick"])
    assert (job.settings["solver"]["steps"], job.settings["draws"]) == (3, 20)
    (job,) = compose(["--config-dir", str(tmp_path), "--config-name", "lab"])
    assert (job.settings["solver"]["steps"], job.settings["draws"]) == (3, 7)
    assert job.title == "skimage_blur_natural_quick"
    with pytest.raises(NotADirectoryError, match=r"expected a folder of \.yaml files"):
        compose(["--config-dir", str(tmp_path / "none")])


def test_the_photographs_of_the_settings_are_there():
    assert set(TARGETS["data/skimage"]["images"]) <= set(sources.PHOTOGRAPHS)
