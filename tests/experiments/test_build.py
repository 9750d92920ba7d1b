"""What a configuration may call, and above all what it may not."""

from __future__ import annotations

import functools
import subprocess
import sys
import types
from pathlib import Path

import deepinv  # so that an alias of its torch could be followed
import pytest
import torch

import invdiff.priors.weights
from invdiff.experiments import build as module
from invdiff.experiments.allowed import ALLOWED
from invdiff.experiments.build import RefusedError, build, check, find, identity
from invdiff.solvers import DDRM

OUTSIDE = [
    "torch.load",
    "torch.serialization.load",
    "torch.hub.load",
    "builtins.open",
    "builtins.eval",
    "pathlib.Path.write_text",
    "os.system",
    "subprocess.run",
    "shutil.rmtree",
    "hydra.utils.get_method",
    "hydra.utils.get_class",
    "hydra.utils.instantiate",
    "importlib.import_module",
    "functools.partial",
    "deepinv.torch.load",
    "invdiff.priors.weights.torch.load",
    "invdiff.priors.weights.load_state_dict",
    "invdiff.noise.GaussianNoise.__init__",
    "invdiff.solvers.ddrm.DDRM.__class__",
    "invdiff.experiments.build.importlib.import_module",
    "invdiff.experiments.sources.Path.write_text",
    "invdiff.priors",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_the_list_is_called(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match="not on the list"):
        build({"_target_": name})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alias", ["deepinv.torch.load", "invdiff.priors.weights.torch.load"])
def test_an_alias_is_refused_by_what_it_is(alias):
    # The alias leads there, so that a check of the name alone could let it pass.
    root = {"deepinv": deepinv, "invdiff": invdiff}[alias.partition(".")[0]]
    assert functools.reduce(getattr, alias.split(".")[1:], root) is torch.load
    with pytest.raises(RefusedError, match=r"which is torch\.serialization:load"):
        build({"_target_": alias, "f": "weights.pt"})


def test_nothing_is_called_before_all_is_checked(monkeypatch):
    made = []
    monkeypatch.setattr(DDRM, "__post_init__", lambda self: made.append(self))
    tree = {"a": {"_target_": "invdiff.solvers.ddrm.DDRM"}, "b": [{"_target_": "torch.load", "f": "x"}]}
    with pytest.raises(RefusedError, match=r"at b\[0\] names torch\.load"):
        build(tree)
    assert not made
    build({"a": tree["a"]})
    assert len(made) == 1


@pytest.mark.parametrize(
    "tree",
    [
        {"_target_": "invdiff.operators.blur.Blur", "kernel": {"_target_": "numpy.load", "file": "x"}},
        {"_target_": "invdiff.solvers.ddrm.DDRM", "steps": [{"x": {"_target_": "numpy.load"}}]},
        {"deep": {"deeper": [[{"_target_": "numpy.load"}]]}},
    ],
)
def test_nested_names_are_refused(tree):
    with pytest.raises(RefusedError, match=r"names numpy\.load"):
        build(tree)


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_convert_", "_recursive_", "_anything_"])
def test_what_instantiate_takes_beside_the_target_is_refused(key):
    with pytest.raises(RefusedError, match=f"holds {key}: expected _target_"):
        build({"_target_": "invdiff.solvers.ddrm.DDRM", key: True})
    with pytest.raises(RefusedError, match=f"holds {key}"):
        build({"data": {key: ["builtins.open"]}})


@pytest.mark.parametrize("name", [None, 3, ["torch.load"], "", "torch load", "torch.load()", ".load", "a..b"])
def test_a_name_is_a_dotted_word(name):
    with pytest.raises(RefusedError, match="expected a name such as"):
        check({"_target_": name})


def test_settings_are_those_that_the_signature_names():
    with pytest.raises(RefusedError, match="did you mean 'steps'"):
        build({"_target_": "invdiff.solvers.ddrm.DDRM", "step": 3})
    # What takes any setting takes those it names: the rest would go on to code that nobody has listed.
    with pytest.raises(RefusedError, match="which it lacks: it takes name, sigma_range"):
        build({"_target_": "invdiff.priors.adapters.load_deepinv", "name": "TVDenoiser", "xyzzy": "FILE"})


def test_a_download_is_refused():
    with pytest.raises(RefusedError, match="asks for a download"):
        build({"_target_": "invdiff.priors.adapters.load_deepinv", "name": "DnCNN", "pretrained": "download"})


def test_a_guarded_setting_is_allowed_by_its_own_name():
    pytest.importorskip("distributed", reason="the optional package distributed is not installed")
    tree = {"_target_": "invdiff.distributed.Dask", "workers": 2, "address": "tcp://elsewhere:8786"}
    with pytest.raises(RefusedError, match=r"sets address, which connects to another machine"):
        check(tree)
    check(tree, allow=["invdiff.distributed:Dask.address"])
    check({**tree, "address": None})


def test_aliases_of_what_is_on_the_list_are_it():
    assert find("invdiff.solvers.DDRM") is DDRM
    assert build({"_target_": "invdiff.solvers.DDRM", "steps": 5}) == DDRM(steps=5)
    assert find("invdiff.priors.DnCNN.from_file").__self__.__name__ == "DnCNN"


def test_lists_become_tuples():
    made = build({"_target_": "invdiff.operators.mask.half_mask", "in_shape": [1, 2, 2]})
    assert made.shape == (1, 2, 2)
    assert build({"a": [1, [2]]}) == {"a": (1, (2,))}


def test_a_false_identity_is_none(monkeypatch):
    assert identity(DDRM) == "invdiff.solvers.ddrm:DDRM"
    false = types.SimpleNamespace(__module__="invdiff.solvers.ddrm", __qualname__="DDRM")
    assert identity(false) is None

    @functools.wraps(DDRM)
    def wrapped():
        raise AssertionError

    assert identity(wrapped) is None
    monkeypatch.setattr(module, "spoof", wrapped, raising=False)
    with pytest.raises(RefusedError, match="not on the list"):
        build({"_target_": "invdiff.experiments.build.spoof"})


def test_an_inherited_method_is_not_the_one_of_the_list():
    from invdiff.priors.cnn import DnCNN

    class Mine(DnCNN):
        pass

    assert identity(DnCNN.from_file) == "invdiff.priors.cnn:DnCNN.from_file"
    assert identity(Mine.from_file) is None
    assert identity("".join) is None


def test_the_list_grows_by_code_alone():
    tree = {"_target_": "decimal.Decimal", "value": "1"}
    with pytest.raises(RefusedError):
        build(tree)
    assert str(build(tree, allow=["decimal:Decimal"])) == "1"
    assert "decimal:Decimal" not in ALLOWED


def test_modules_that_hold_nothing_of_the_list_are_not_imported(tmp_path):
    (tmp_path / "intruder.py").write_text("open('ran', 'w')\n")
    code = (
        "import sys; from invdiff.experiments.build import *\n"
        "for name in ('intruder.f', 'antigravity.x', 'deepinv.torch.load', 'torch.utils.tensorboard.SummaryWriter'):\n"
        "    try: check({'_target_': name})\n"
        "    except RefusedError: print('refused')\n"
        "print('intruder' in sys.modules, 'antigravity' in sys.modules, 'deepinv' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{root}:{tmp_path}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.split() == ["refused"] * 4 + ["False"] * 3, run.stderr
    assert not (tmp_path / "ran").exists()


def test_the_list_is_what_it_says():
    """Every name leads to an object that states it; none is a package's way to torch, numpy or the system."""
    optional = {"invdiff.priors.bm3d:BM3D"}
    for entry in ALLOWED - optional:
        holder, _, name = entry.partition(":")
        assert identity(find(f"{holder}.{name}")) == entry
        assert holder.startswith("invdiff.")
