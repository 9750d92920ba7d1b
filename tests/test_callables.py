"""Functions, arrays and objects of others in the record: told apart by what they compute with."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

from invdiff import priors, sample, solvers
from invdiff.callables import opaque_in
from invdiff.operators import from_function, from_scipy
from invdiff.priors import FunctionPrior
from invdiff.record import describe

SCALE = 1.0


def plain(thing: object) -> Any:
    """The description after a journey through JSON, which must not change it."""
    found = describe(thing)
    assert json.loads(json.dumps(found)) == found
    return found


def closed(k: object) -> Any:
    return lambda x, s: x * k


def default(k: float) -> Any:
    def shrink(x: Tensor, s: Tensor, *, by: float = k) -> Tensor:
        return x * by

    return shrink


def scaled(x: Tensor, s: Tensor) -> Tensor:
    return SCALE * x


def nested(k: float) -> Any:
    return lambda x, s: (lambda z: z * k)(x)


def module(k: float) -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, 2, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, k)
    return nn.Sequential(layer, nn.ReLU())


class Own(priors.Prior):
    """A prior of somebody else's."""

    name = "own"

    def __init__(self, public: Any = None, private: Any = None) -> None:
        self.weights, self._hidden = public, private

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


class Walk:
    """A solver of somebody else's, which is no dataclass."""

    stochastic = True

    def __init__(self, steps: int, table: Any = None) -> None:
        self.steps, self.table = steps, table

    def iterate(self, likelihood: Any, denoiser: Any, x: Tensor, random: Any) -> Any:
        for _ in range(self.steps):
            x = denoiser(x, 0.1)
            yield x


@dataclasses.dataclass(frozen=True)
class Told:
    function: Any


class Scale(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by


ARRAYS = tuple(np.full((2, 3), value) for value in (1.0, 1.0, 2.0))
TENSORS = tuple(torch.from_numpy(value) for value in ARRAYS)
NUMBERS = (1.0, 1.0, 2.0)

PAIRS: dict[str, list[Any]] = {
    "closure": [closed(k) for k in NUMBERS],
    "closure over a tensor": [closed(k) for k in TENSORS],
    "closure over an array": [closed(k) for k in ARRAYS],
    "closure over numbers": [closed([k, 1.0]) for k in NUMBERS],
    "closure over a function": [closed(closed(k)) for k in NUMBERS],
    "default": [default(k) for k in NUMBERS],
    "nested": [nested(k) for k in NUMBERS],
    "code": [lambda x: x + 1, lambda x: x + 1, lambda x: x - 1],
    "constant": [lambda x: 2 * x, lambda x: 2 * x, lambda x: 2.0 * x],
    "attribute": [lambda x: x.sin(), lambda x: x.sin(), lambda x: x.cos()],
    "partial": [functools.partial(default(1.0), by=k) for k in NUMBERS],
    "method": [Walk(int(k)).iterate for k in NUMBERS],
    "method of a tensor": [k.mul for k in TENSORS],
    "cached": [functools.cache(closed(k)) for k in NUMBERS],
    "array": list(ARRAYS),
    "public array": [Own(public=k) for k in ARRAYS],
    "private array": [Own(private=k) for k in ARRAYS],
    "private tensor": [Own(private=k) for k in TENSORS],
    "private function": [Own(private=closed(k)) for k in NUMBERS],
    "list of arrays": [Own(public=[k]) for k in ARRAYS],
    "dict of arrays": [Own(public={"a": k}) for k in ARRAYS],
    "solver": [Walk(int(k)) for k in NUMBERS],
    "table": [Walk(2, k) for k in ARRAYS],
    "dataclass": [Told(closed(k)) for k in NUMBERS],
    "prior of a function": [FunctionPrior(closed(k), name="f") for k in NUMBERS],
    "network": [FunctionPrior(module(k)) for k in NUMBERS],
    "attribute of a network": [FunctionPrior(nn.Sequential(Scale(k))) for k in NUMBERS],
    "operator": [from_function(lambda x, k=k: k * x, (4,)) for k in NUMBERS],
    "nonlinear": [from_function(functools.partial(closed(k), s=0), (4,), linear=False) for k in NUMBERS],
    "adjoint": [from_function(lambda x: x, (4,), lambda y, k=k: y * k) for k in NUMBERS],
    "scipy": [from_scipy(scipy.sparse.diags([k, 1.0, 2.0])) for k in NUMBERS],
    "bytes": [b"1", b"1", b"2"],
    "set": [{1, 2}, {2, 1}, {1, 3}],
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_others_wrote_is_told_apart(name: str) -> None:
    first, same, other = PAIRS[name]
    assert plain(first) == plain(same) != plain(other)


def test_globals_count_and_so_do_those_of_what_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(x: Tensor, s: Tensor) -> Tensor:
        return scaled(x, s)

    before, through = plain(scaled), plain(calls)
    assert before["globals"] == {f"{__name__}.SCALE": 1.0}
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert plain(scaled) != before
    assert plain(calls) != through


def test_the_code_of_a_class_counts() -> None:
    def made(k: float) -> Any:
        class Some(priors.Prior):
            factor = 1.0

            def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
                return x * k

        return Some

    first, same, other = (made(k)() for k in NUMBERS)
    assert plain(first) == plain(same) != plain(other)
    type(same).factor = 2.0
    assert plain(first) != plain(same)


def test_classes_of_others_by_their_module() -> None:
    assert plain(Own())["name"] == f"{__name__}.Own"
    assert plain(Walk(3)) | {"name": f"{__name__}.Walk", "steps": 3, "table": None} == plain(Walk(3))
    assert plain(solvers.DDRM())["name"] == "DDRM"
    assert plain(priors.load("tv"))["name"] == "TV"
    assert plain(torch.relu)["function"].endswith(".relu")
    assert plain(np.sin) == {"function": "numpy.sin"}
    assert plain(nn.functional.silu)["function"] == "torch.nn.functional.silu"
    assert "code" not in plain(nn.functional.silu)


def test_what_cannot_be_described_says_so() -> None:
    assert plain(torch.Generator()) == {"opaque": "torch._C.Generator"}
    assert plain(closed(torch.Generator()))["closure"] == {"k": {"opaque": "torch._C.Generator"}}
    assert plain(Own(private=3))["opaque"] == f"{__name__}.Own._hidden"
    assert plain(np.array([object()], dtype=object)) == {"opaque": "numpy.ndarray"}
    assert opaque_in(plain(Told([{"a": object()}]))) == "builtins.object"
    assert opaque_in(plain(Own(private=ARRAYS[0]))) is None
    for ours in (priors.load("tv"), solvers.KPS(), priors.load_natural(), from_function(lambda x: 2 * x, (4,))):
        assert opaque_in(plain(ours)) is None


def test_what_holds_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert plain(loop) == [{"within": "builtins.list"}]
    walk = Walk(1)
    walk.table = walk
    assert plain(walk)["table"] == {"within": f"{__name__}.Walk"}

    def again(x: Tensor, s: Tensor) -> Tensor:
        return again(x, s) if len(x) else x

    assert plain(again)["closure"]["again"] == {"within": "builtins.function"}


def test_another_process_gives_the_same_description() -> None:
    here = {name: describe(PAIRS[name][0]) for name in PAIRS}
    lines = """
import importlib, json, sys
there = importlib.import_module(sys.argv[1])
print(json.dumps({name: there.describe(three[0]) for name, three in there.PAIRS.items()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", lines, __name__],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[__name__.count(".")],
        env=os.environ | {"PYTHONHASHSEED": "1"},
    )
    assert json.loads(done.stdout) == here


def test_the_record_of_a_run_holds_it() -> None:
    first, other = (sample(Walk(1), None, closed(k), in_shape=(1, 2, 2)).record for k in (1.0, 2.0))
    assert first["prior"]["function"]["closure"] == {"k": 1.0}
    assert first["prior"] != other["prior"]
    assert first["solver"] == other["solver"] | {"name": f"{__name__}.Walk"}
