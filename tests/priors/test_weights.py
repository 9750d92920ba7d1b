"""Weights are read without running code, and every file that cannot be used is answered in a sentence."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from invdiff.priors.weights import fill, load_state_dict, read_prior, save_prior


class Planted:
    """Unpickling this creates a file: the proof that nothing unpickled it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(3, 2)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"params_ema": s, "step": 3}])
def test_plain_and_wrapped_files(tmp_path: Path, linear: nn.Linear, wrap: Any) -> None:
    torch.save(wrap(linear.state_dict()), tmp_path / "w.pth")
    state = load_state_dict(tmp_path / "w.pth")
    assert set(state) == {"weight", "bias"}
    assert torch.equal(state["weight"], linear.weight)


def test_the_prefix_of_data_parallel_is_dropped(tmp_path: Path, linear: nn.Linear) -> None:
    torch.save({f"module.{k}": v for k, v in linear.state_dict().items()}, tmp_path / "w.pth")
    assert set(load_state_dict(str(tmp_path / "w.pth"))) == {"weight", "bias"}


def test_safetensors(tmp_path: Path, linear: nn.Linear) -> None:
    save_prior(tmp_path / "w.safetensors", linear.state_dict(), {"widths": [1, 2]}, {"licence": "own"})
    state, network, card = read_prior(tmp_path / "w.safetensors")
    assert network == {"widths": [1, 2]}
    assert card == {"licence": "own"}
    torch.testing.assert_close(state["weight"], linear.weight.detach().half())
    assert set(load_state_dict(tmp_path / "w.safetensors")) == {"weight", "bias"}


def test_safetensors_without_a_card(tmp_path: Path, linear: nn.Linear) -> None:
    from safetensors.torch import save_file

    save_file(linear.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors holds weights without the network and card"):
        read_prior(tmp_path / "w.safetensors")


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "extra": Planted(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth holds pickled Python objects.*model\.state_dict\(\)"):
        load_state_dict(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["dncnn_bias_free_0-100.pt", "pytorch_sigma25_pickled_module.pth"])
def test_real_pickled_checkpoints_are_refused(data: Path, name: str) -> None:
    with pytest.raises(ValueError, match="holds pickled Python objects") as caught:
        load_state_dict(data / "weights" / "refuse" / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 60, 0.5, 0.98])
def test_cut_files_are_refused(tmp_path: Path, linear: nn.Linear, name: str, keep: float) -> None:
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(linear.state_dict(), path)
    else:
        save_prior(path, linear.state_dict(), {}, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if isinstance(keep, int) else keep * len(whole))])
    with pytest.raises(ValueError, match=r"fetch it again|is it complete") as caught:
        load_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [1, 18, 0.5])
def test_older_files_cut_short_are_refused(tmp_path: Path, linear: nn.Linear, keep: float) -> None:
    path = tmp_path / "old.pth"
    torch.save(linear.state_dict(), path, _use_new_zipfile_serialization=False)
    assert set(load_state_dict(path)) == {"weight", "bias"}
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if isinstance(keep, int) else keep * len(whole))])
    with pytest.raises(ValueError, match=r"old\.pth .*(fetch it again|is it complete)"):
        load_state_dict(path)


@pytest.mark.parametrize(
    "content", [b"not weights at all, only text\n" * 20, b"\x80\x02garbage", b"PK\x03\x04 broken zip"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"text\.pth is"):
        load_state_dict(tmp_path / "text.pth")


@pytest.mark.parametrize("thing", [[1, 2], {"a": 3}, {}, torch.ones(3)])
def test_files_without_named_tensors_are_refused(tmp_path: Path, thing: Any) -> None:
    torch.save(thing, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="and not named tensors"):
        load_state_dict(tmp_path / "odd.pth")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth does not exist"):
        load_state_dict(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_state_dict(tmp_path)


def test_fill_names_what_does_not_fit(linear: nn.Linear) -> None:
    state = dict(linear.state_dict())
    with pytest.raises(ValueError, match="w does not fit Linear: it lacks 'bias'"):
        fill(linear, {"weight": state["weight"]}, "w")
    with pytest.raises(ValueError, match="it has unexpected 'a' and 1 more"):
        fill(linear, {**state, "a": state["bias"], "b": state["bias"]}, "w")
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 4\) and not \(2, 3\)"):
        fill(linear, {**state, "weight": torch.ones(2, 4)}, "w")
    fill(linear, {key: torch.zeros_like(value) for key, value in state.items()}, "w")
    assert float(linear.weight.detach().abs().sum()) == 0


def test_the_hash_is_checked(tmp_path: Path, linear: nn.Linear) -> None:
    path = tmp_path / "w.pth"
    torch.save(linear.state_dict(), path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(load_state_dict(path, sha256=right.upper())) == {"weight", "bias"}
    with pytest.raises(ValueError, match=rf"w\.pth has the SHA-256 {right} and not the expected {'0' * 64}; fetch it"):
        load_state_dict(path, sha256="0" * 64)
    save_prior(tmp_path / "w.safetensors", linear.state_dict(), {}, {})
    with pytest.raises(ValueError, match=r"w\.safetensors has the SHA-256"):
        read_prior(tmp_path / "w.safetensors", sha256="0" * 64)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_edm_and_namespaces_are_refused_with_the_way_out(tmp_path: Path, protocol: int) -> None:
    # An EDM .pkl is a plain pickle of a mapping to a network object.
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": Planted(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(ValueError, match=r"edm\.pkl holds pickled Python objects.*save model\.state_dict\(\)"):
        load_state_dict(tmp_path / "edm.pkl")
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    with pytest.raises(ValueError, match=r"args\.pth holds pickled Python objects \(argparse\.Namespace\)"):
        load_state_dict(tmp_path / "args.pth")


def test_a_network_without_storage_takes_the_tensors_over(linear: nn.Linear) -> None:
    with torch.device("meta"):
        empty = nn.Linear(3, 2)
    fill(empty, {key: value.half() for key, value in linear.state_dict().items()}, "w")
    assert empty.weight.dtype == torch.float32
    torch.testing.assert_close(empty.weight, linear.weight, rtol=1e-3, atol=1e-3)
